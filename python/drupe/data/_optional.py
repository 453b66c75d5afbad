"""Import a package that only some functions need, or say which extra brings it."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, what: str, extra: str = "demo") -> Any:
    """Import and return ``module``.

    Raises:
        ImportError: it is not installed; the message names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module.partition(".")[0])
        raise ImportError(f"{what} needs {package}: pip install 'drupe[{extra}]'") from error
