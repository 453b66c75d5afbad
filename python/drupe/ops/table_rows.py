"""Ids of many tables as rows of one, as they are or hashed."""

from __future__ import annotations

from collections.abc import Sequence

from drupe import _C
from drupe.ops._call import A, Array, Call


def table_rows(ids: A, tables: Sequence[int], offsets: Array | None = None, *, hash_seed: int | None = None) -> A:
    """Return the rows that the ids of T tables have where these lie one after another, ``start of its table + id``.

    For a table that is looked up more than once by the same ids; :func:`embedding_bag` takes the ids themselves.

    Args:
        ids: (B, T) or (B, T, L), of which column t is table t's; or (N,) beside ``offsets``. int32 or int64, in
            [0, rows of its table).
        tables: how many rows each table has.
        offsets: (T, B), int32 or int64: where each bag of each table begins in ``ids``, table after table.
        hash_seed: take ids of any value, hashed with this seed (:func:`hash_ids`).

    Returns:
        int64, of ids' shape.

    Raises:
        IndexError: an id that is not in its table, with its place and table.
        ValueError: shapes that do not fit, offsets that decrease or leave the ids, a number of rows below 0, a seed
            outside [0, 2^64).
        TypeError: ids or offsets that are no int32 or int64.
    """
    if hash_seed is not None:
        _check_seed("table_rows", "hash_seed", hash_seed)
    call = Call("table_rows", ids, offsets)
    raw_ids, raw_offsets = call.raw
    return call.output(_C.table_rows(raw_ids, raw_offsets, tables, hash_seed))


def hash_ids(ids: A, rows: int | Sequence[int], offsets: Array | None = None, *, seed: int = 0) -> A:
    """Give each id, whatever its value, a row: ``floor(h rows / 2^64)``, so that raw ids need no vocabulary.

    h is output ``seed``, counted from 0, of the generator SplitMix64 with the id as its state, in [0, 2^64): all bits
    of the id matter, and rows are equally likely but for one part in 2^64 / rows. Ids share a row by chance only,
    other ones with every seed. The same id, in int32 or int64, has the same row on every device.

    Args:
        ids: int32 or int64, of any shape and any values; with many tables as for :func:`table_rows`.
        rows: how many there are, or how many each table has.
        offsets: (T, B), as for :func:`table_rows`.
        seed: in [0, 2^64).

    Returns:
        int64, of ids' shape, in [0, rows), or [0, rows of its table).

    Raises:
        IndexError: ids for a table without rows.
        ValueError: shapes that do not fit, a number of rows below 0, a seed outside [0, 2^64), offsets beside one
            number of rows.
        TypeError: ids that are no int32 or int64.

    Reference:
        G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 17;
        D. Lemire, "Fast Random Integer Generation in an Interval", arXiv:1805.10941, section 4; for features:
        K. Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", arXiv:0902.2206.
    """
    _check_seed("hash_ids", "seed", seed)
    call = Call("hash_ids", ids, offsets)
    raw_ids, raw_offsets = call.raw
    if not isinstance(rows, int):
        return call.output(_C.hash_ids(raw_ids, raw_offsets, rows, seed))
    if offsets is not None:
        raise ValueError("[hash_ids] offsets are for many tables: rows is one number")
    return call.output(_C.hash_ids(raw_ids, rows, seed))


def _check_seed(op: str, name: str, seed: int) -> None:
    if not 0 <= seed < 2**64:
        raise ValueError(f"[{op}] {name} is {seed}: expected 0 to 2^64 - 1")
