"""The command ``drupe``."""

from __future__ import annotations

import sys

_MISSING = 'drupe: the command needs {name}, which is not installed: pip install "drupe[cli]"'


def main() -> None:
    """Run the command. Exits with 2 where typer or rich, its extra requirements, are missing."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "rich", "click"):
            raise
        print(_MISSING.format(name=error.name), file=sys.stderr)
        sys.exit(2)
    from drupe.cli.app import app

    app(prog_name="drupe")
