"""Batch normalisation."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Array, Call
from drupe.tensor import Tensor, share, share_in_place, to_raw


def _running(x: Array | None, name: str, *, written: bool) -> tuple[_C.Tensor | None, _C.Tensor | None]:
    """Return running statistics where the op wants them, and the tensor of their own memory if that is elsewhere."""
    if x is None:
        return None, None
    home = share_in_place(x, "batch_norm", name) if written else share(x, "batch_norm")
    raw = to_raw(x, "batch_norm")
    if raw.device == home.device:
        return raw, None
    if written and home.readonly:
        raise ValueError(f"[batch_norm] {name} is read-only and would be written in place")
    return raw, home


def batch_norm(
    x: A,
    weight: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    layout: str = "NCHW",
) -> A:
    """Batch normalisation of each channel: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    In training, mean and biased variance are those of ``x`` over all dimensions but the channels', and the running
    statistics, if given, are updated in place: ``running = (1 - momentum) running + momentum batch``, with the unbiased
    variance. Otherwise the running statistics take their place.

    The kernels want the channels last in memory: ``x`` in another memory order is copied, and the result has the
    channels last, in either layout. In bfloat16 subnormal results (below 1.2e-38) may be zeros.

    Args:
        x: (N, C, …), or (N, …, C) for layout ``"NHWC"``; float.
        weight: (C,), the dtype of ``x``, or float32 for 16-bit ``x``; 1 where left out.
        bias: as ``weight``; 0 where left out.
        running_mean: (C,), float64 for float64 ``x``, float32 otherwise; with ``running_var`` or not at all.
        running_var: as ``running_mean``.
        training: use the statistics of ``x``, and update the running ones.
        momentum: the weight of this batch in the running statistics, 0 to 1.
        eps: added to the variance; finite, not negative.
        layout: ``"NCHW"`` or ``"NHWC"``, whatever the number of dimensions, 2 at least.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: shapes that do not fit, an option out of range, running statistics that are read-only, or missing
            outside training, or training with one value per channel.
        TypeError: a dtype that is not float, or one that does not go with that of ``x``.

    Reference:
        S. Ioffe, C. Szegedy, "Batch Normalization", arXiv:1502.03167, algorithms 1 and 2.
    """
    call = Call("batch_norm", x, weight, bias)
    rx, rweight, rbias = call.raw
    mean_in, mean_home = _running(running_mean, "running_mean", written=training)
    var_in, var_home = _running(running_var, "running_var", written=training)
    y, mean, rstd = _C.batch_norm(rx, rweight, rbias, mean_in, var_in, training, momentum, eps, layout)
    if training:
        for updated, home in ((mean_in, mean_home), (var_in, var_home)):
            if updated is not None and home is not None:
                _C.copy_into(home, _C.to_device(updated, home.device))
        for statistic in (running_mean, running_var):
            if isinstance(statistic, Tensor):
                statistic.version += 1

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        return _C.batch_norm_backward(dy, rx, rweight, rbias, mean, rstd, training, layout)

    return call.output(y, backward)
