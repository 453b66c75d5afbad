"""Cross entropy of a linear layer's outputs, which are never held as a whole."""

from __future__ import annotations

import re

from drupe import _C
from drupe.ops._call import A, Array, Call

_CHUNK_ELEMENTS = 16 << 20  # of the logits that exist at one time
_TINY = {"float32": 1.2e-38, "float64": 1e-307}


def linear_cross_entropy(
    x: A,
    weight: Array,
    labels: Array,
    *,
    bias: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> A:
    """``cross_entropy(x @ weight.T + bias, labels)``, some rows at a time.

    A language model's logits, (N, C), outweigh all else that it keeps. Here no more than 16 Mi of them (or one row)
    exist at a time, and in the backward pass as many gradients of them. The forward pass drops them and the backward
    pass makes them again, at the price of one product more. Gradients of ``weight`` and ``bias`` are added up over the
    chunks of rows, rounded to their dtype after each.

    Args:
        x: (..., K), float.
        weight: (C, K), the dtype of ``x``.
        labels: (...), int32 or int64, each in [0, C) or ``ignore_index``.
        bias: (C,), the dtype of ``x``.
        ignore_index: labels of this value have a loss and a gradient of 0.
        label_smoothing: 0 to 1, as in :func:`cross_entropy`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``; the mean is over the labels that are not ignored.

    Returns:
        (), or (...) for ``"none"``; float64 for float64 inputs, float32 otherwise.

    Raises:
        IndexError: a label that is out of range.
        ValueError: shapes that do not fit, an option out of range.
        TypeError: a dtype that is not as above.

    Reference:
        E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", arXiv:2411.09009.
    """
    call = Call("linear_cross_entropy", x, weight, labels, bias)
    rx, rweight, rlabels, rbias = call.raw
    _check(rx, rweight, rlabels, rbias, reduction)
    C, K = rweight.shape
    count = rlabels.numel
    rows, targets = _C.reshape(rx, (count, K)), _C.reshape(rlabels, (count,))
    step = max(1, _CHUNK_ELEMENTS // max(1, C))
    spans = [(begin, min(begin + step, count), 1) for begin in range(0, max(1, count), step)]
    options = (ignore_index, label_smoothing, "none")

    def logits(span: tuple[int, int, int]) -> _C.Tensor:
        return _C.gemm(rows.slice(0, *span), rweight, rbias, transpose_b=True)[0]

    def forward(span: tuple[int, int, int]) -> tuple[_C.Tensor, _C.Tensor, _C.Tensor]:
        try:
            return _C.cross_entropy(logits(span), targets.slice(0, *span), None, *options)
        except (IndexError, TypeError, ValueError) as error:
            message = re.sub(r"^\[\w+\]", "[linear_cross_entropy]", str(error))
            raise type(error)(f"{message} (counted from row {span[0]})" if span[0] else message) from None

    chunks = [forward(span) for span in spans]
    losses = _C.concat([loss for loss, _, _ in chunks], 0)
    divisor = None
    if reduction == "mean":
        counted = _C.reduce("sum", _C.concat([_C.reshape(total, (1,)) for _, _, total in chunks], 0), (0,), False)
        # Where no label counts, the losses are 0 and so is their mean.
        least = _C.full((), _TINY[losses.dtype], losses.dtype, losses.device)
        divisor = _C.binary("maximum", _C.cast(counted, losses.dtype), least)
    if reduction == "none":
        loss = _C.reshape(losses, rlabels.shape)
    else:
        loss = _C.reduce("sum", losses, (0,), False)
        loss = loss if divisor is None else _C.binary("div", loss, divisor)

    def backward(dloss: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        douter = dloss if divisor is None else _C.binary("div", dloss, divisor)
        douter = _C.contiguous(_C.reshape(douter.broadcast_to(rlabels.shape), (count,)))
        dx: list[_C.Tensor] = []
        dweight = dbias = None
        for span, (_, sums, total) in zip(spans, chunks, strict=True):
            own = targets.slice(0, *span)
            dz = _C.cross_entropy_backward(douter.slice(0, *span), logits(span), own, None, sums, total, *options)
            if call.needs_grad(0):
                dx.append(_C.gemm(dz, rweight)[0])
            if call.needs_grad(1):
                dweight = _C.gemm(dz, rows.slice(0, *span), residual=dweight, transpose_a=True)[0]
            if call.needs_grad(3):
                part = _C.reduce("sum", dz, (0,), False)
                dbias = part if dbias is None else _C.binary("add", dbias, part)
            del dz  # before the next chunk's logits
        return (_C.reshape(_C.concat(dx, 0), rx.shape) if dx else None), dweight, None, dbias

    return call.output(loss, backward)


def _check(x: _C.Tensor, weight: _C.Tensor, labels: _C.Tensor, bias: _C.Tensor | None, reduction: str) -> None:
    fault = ""
    if len(weight.shape) != 2:
        fault = "expected weight (C, K)"
    elif len(x.shape) == 0 or x.shape[-1] != weight.shape[1]:
        fault = "expected x (..., K) and weight (C, K)"
    elif labels.shape != x.shape[:-1]:
        fault = "expected one label for each row of x"
    elif bias is not None and bias.shape != weight.shape[:1]:
        fault = f"bias is {bias.shape}: expected (C,)"
    if fault:
        raise ValueError(
            f"[linear_cross_entropy] {fault}; x is {x.shape}, weight {weight.shape}, labels {labels.shape}"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"[linear_cross_entropy] reduction is {reduction!r}: expected mean, sum or none")
