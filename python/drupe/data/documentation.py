"""English text that every Python carries: the language reference, as ``help()`` shows it."""

from __future__ import annotations

import re


def python_documentation() -> dict[str, str]:
    """Return the pages of the Python language reference in ``pydoc_data``: topic -> text, in alphabetical order.

    Rulers are dropped and lines joined to paragraphs; paragraphs stay apart by an empty line.

    Raises:
        ImportError: this Python comes without ``pydoc_data`` (some distributions package it apart).
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError("python_documentation needs pydoc_data, which this Python was installed without") from error
    return {name: _clean(topics[name]) for name in sorted(topics)}


def _clean(text: str) -> str:
    text = re.sub(r"^\s*[*=\-~^\"]{3,}\s*$", "", text, flags=re.MULTILINE)
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
