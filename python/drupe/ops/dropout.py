"""Dropout."""

from __future__ import annotations

from drupe import _C, random
from drupe.ops._call import A, Call


def dropout(x: A, p: float = 0.5, *, seed: int | None = None, offset: int = 0, training: bool = True) -> A:
    """Zero each element with probability ``p`` and scale the others: ``x / (1 - p)`` where ``u >= p``, else 0.

    Element i, counted in C order of the indices, takes ``u = (word >> 8) * 2^-24``, where word is word i mod 4 of
    Philox4x32-10 with the 128-bit counter (i div 4) + offset * 2^64 and the 64-bit key ``seed``, low words first. So
    the mask does not depend on memory order, threads or device. For backward the CPU keeps it, a bit for each element;
    a GPU draws it again.

    Args:
        x: any shape, float; copied unless it is C-contiguous.
        p: a probability, 0 to 1; 1 gives zeros.
        seed: the stream's key, 0 to 2^64 - 1; by default the next stream of :func:`drupe.manual_seed`'s, whose offset
            takes the place of ``offset``. While a graph is captured that is a stream of each replay's; a seed that is
            given stays the same.
        offset: which of the seed's 2^64 streams.
        training: without it, ``x`` itself is returned.

    Returns:
        The shape and dtype of ``x``, C-contiguous. An infinity or NaN that is dropped gives 0.

    Raises:
        ValueError: ``p``, ``seed`` or ``offset`` is out of range.
        TypeError: not a float dtype.

    Reference:
        N. Srivastava et al., "Dropout", JMLR 15, 2014; J. K. Salmon et al., "Parallel Random Numbers: As Easy as
        1, 2, 3", SC 2011, section 3.3.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"[dropout] p is {p}: expected 0 to 1")
    for name, value in (("seed", seed), ("offset", offset)):
        if value is not None and not 0 <= value < 2**64:
            raise ValueError(f"[dropout] {name} is {value}: expected 0 to 2^64 - 1")
    if not training:
        return x
    call = Call("dropout", x)
    raw: _C.Tensor = call.raw[0]
    key, stream, state = random.next_kernel_stream(raw.device) if seed is None else (seed, offset, None)
    y, mask = _C.dropout(raw, p, key, stream, state, call.recorded)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        return (_C.dropout_backward(dy, mask, p, key, stream, state),)

    return call.output(y, backward)
