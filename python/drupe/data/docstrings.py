"""A text classification task from the standard library: which chapter of its manual does a docstring belong to?"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

# The chapters of the Python Library Reference, and modules that it lists in them. Those that are new in or gone from
# some Python version, or that do something when they are imported, are left out.
_CHAPTERS = {
    "concurrent execution": "threading multiprocessing concurrent.futures subprocess sched queue contextvars asyncio "
    "selectors signal",
    "data types": "datetime zoneinfo calendar collections heapq bisect array weakref types copy pprint reprlib enum "
    "operator functools itertools",
    "development tools": "typing pydoc doctest unittest unittest.mock bdb faulthandler pdb timeit trace tracemalloc "
    "profile pstats inspect ast symtable token tokenize pyclbr py_compile compileall dis pickletools importlib "
    "traceback code codeop warnings dataclasses contextlib abc atexit gc site argparse optparse logging "
    "logging.handlers logging.config getopt",
    "files and storage": "pathlib fileinput stat filecmp tempfile glob fnmatch linecache shutil zlib gzip bz2 lzma "
    "zipfile tarfile pickle shelve dbm sqlite3 csv configparser plistlib netrc os io",
    "internet": "socket ssl email mailbox mimetypes base64 binascii quopri html xml.dom.minidom xml.sax "
    "xml.etree.ElementTree wsgiref urllib.request urllib.parse http.client http.server http.cookies http.cookiejar "
    "ftplib poplib imaplib smtplib socketserver xmlrpc.client xmlrpc.server ipaddress uuid",
    "mathematics": "numbers math cmath decimal fractions random statistics",
    "text": "string re difflib textwrap unicodedata stringprep codecs struct",
}


@dataclass(frozen=True)
class Docstrings:
    """Docstrings and where they come from.

    Attributes:
        texts: the docstrings, each once.
        labels: for each, its chapter, as an index into ``label_names``.
        groups: for each, the function or class that it documents, as ``module.name``; methods belong to their class.
        label_names: the chapters.
    """

    texts: list[str]
    labels: list[int]
    groups: list[str]
    label_names: list[str]

    def __len__(self) -> int:
        return len(self.texts)


def stdlib_docstrings(*, min_words: int = 6) -> Docstrings:
    """Return the docstrings of the standard library's public functions, classes and methods, with their chapters.

    Texts that occur in several chapters are dropped, other duplicates kept once.

    Args:
        min_words: leave out shorter ones.

    Raises:
        ValueError: this Python was told to strip docstrings (``-OO``).
    """
    chapters = sorted(_CHAPTERS)
    seen: dict[str, set[int]] = {}
    first_group: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # modules and members that are deprecated
        for label, chapter in enumerate(chapters):
            for name in _CHAPTERS[chapter].split():
                for group, text in _docstrings(name):
                    if len(text.split()) >= min_words:
                        seen.setdefault(text, set()).add(label)
                        first_group.setdefault(text, group)
    texts = [text for text, labels in seen.items() if len(labels) == 1]
    if not texts:
        raise ValueError("[stdlib_docstrings] found no docstrings: was Python started with -OO?")
    return Docstrings(
        texts=texts,
        labels=[next(iter(seen[text])) for text in texts],
        groups=[first_group[text] for text in texts],
        label_names=chapters,
    )


def _docstrings(name: str) -> Iterator[tuple[str, str]]:
    try:
        module: ModuleType = importlib.import_module(name)
    except ImportError:  # an optional part of the standard library, such as dbm or lzma
        return
    if module.__doc__:
        yield name, inspect.cleandoc(module.__doc__)
    for key, value in sorted(vars(module).items()):
        if key.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if value.__module__ == "builtins":  # str, bytes, … under another name say nothing of the module
            continue
        group = f"{name}.{key}"
        members = sorted(vars(value).items()) if inspect.isclass(value) else []
        for text in [value.__doc__, *(getattr(v, "__doc__", None) for k, v in members if not k.startswith("_"))]:
            if isinstance(text, str):
                yield group, inspect.cleandoc(text)
