"""``python -m drupe.cli``."""

from drupe.cli import main

main()
