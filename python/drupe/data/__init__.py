"""Data: batches, splits, tokenizers, and the real data sets that installed packages carry."""

from drupe.data.batches import Batches, batches
from drupe.data.digits import digits
from drupe.data.docstrings import Docstrings, stdlib_docstrings
from drupe.data.documentation import python_documentation
from drupe.data.fair import Table, fair
from drupe.data.interactions import Interactions
from drupe.data.masking import MaskedTokens, mask_tokens
from drupe.data.shifting import ShiftedImages
from drupe.data.split import split
from drupe.data.wordpiece import Encoded, WordPiece

__all__ = [
    "Batches",
    "Docstrings",
    "Encoded",
    "Interactions",
    "MaskedTokens",
    "ShiftedImages",
    "Table",
    "WordPiece",
    "batches",
    "digits",
    "fair",
    "mask_tokens",
    "python_documentation",
    "split",
    "stdlib_docstrings",
]
