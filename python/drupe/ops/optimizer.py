"""Optimizer steps over lists of arrays, in place.

In all of them ``grad_scale`` multiplies the gradient first (a clipping factor, say), and ``l1`` and ``weight_decay``
add ``l1 sign(p) + weight_decay p`` to it (``adamw`` shrinks the parameter by ``lr weight_decay`` instead).

A gradient may be :class:`drupe.SparseRows`. The step then touches these rows of the parameter and of its states and
no others: exactly the dense step for ``sgd`` without momentum and decay; for the rest, rows without a gradient keep
their states as they are, and are not decayed ("lazy" updates).

On a device, ``lr``, ``grad_scale`` and ``step`` may be tensors there: what they hold when the step runs counts, so that
a captured graph (:class:`drupe.cuda.Graph`) can be replayed with other values. ``lr`` and ``grad_scale`` are then
float64 without dimensions, ``step`` (``steps`` where there are no corrections) a list of int64 without dimensions, one
for each parameter, which the step counts up first.

The states of a float32, float16 or bfloat16 parameter are float32, or all of them narrow, a quarter to a half of that:
bfloat16, or uint8 with ``scales``. uint8 is a code for blocks of 256 elements (in C order) with a scale of their own:
its unit is 2 % of the block's largest value near that, up to 17 % of a value 2^-15 of it, or 2^-30 for means of
squares, beyond which they are 0, or the smallest that is not. A step is computed in float32 from what is stored, and
then stored again, rounded up or down by chance so that the mean is right: a mean of which 0.999 stay is moved by less
than either format has places for, and to nearest it would stay for ever. The draws are those of ``seed`` and
``offset``, other words than those that round parameters. Sparse gradients, ``centered`` and a GPU need float32 states.
A gradient that is not finite makes not finite what is stored for its element, in uint8 for its block.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from drupe import _C, random
from drupe.autograd import SparseRows
from drupe.ops._call import Array
from drupe.tensor import Tensor, share, share_in_place


def in_place(arrays: Sequence[Array], name: str, op: str) -> list[_C.Tensor]:
    """Return raw tensors that share the arrays' memory."""
    return [share_in_place(x, op, name, i) for i, x in enumerate(arrays)]


def _values(grads: Sequence[Array | SparseRows], op: str) -> list[_C.Tensor]:
    return [g.values if isinstance(g, SparseRows) else share(g, op) for g in grads]


def _optional(arrays: Sequence[Array | None] | None, name: str, op: str) -> list[_C.Tensor | None]:
    return [None if x is None else share_in_place(x, op, name, i) for i, x in enumerate(arrays or ())]


def rounding_options(
    stochastic_rounding: bool, seed: int | None, offset: int, op: str, *, drawn_states: bool = False
) -> dict[str, Any]:
    """Return the options of stochastic rounding: by default with the next stream of drupe.random."""
    for name, value in (("seed", seed), ("offset", offset)):
        if value is not None and not 0 <= value < 2**64:
            raise ValueError(f"[{op}] {name} is {value}: expected 0 to 2^64 - 1")
    if (stochastic_rounding or drawn_states) and seed is None:
        seed, offset = random.next_stream()
    return {"stochastic_rounding": stochastic_rounding, "seed": seed or 0, "offset": offset}


class _Scalars:
    """Hyperparameters, some of them on the device: ``host`` are the numbers, ``device`` the tensors."""

    __slots__ = ("device", "host")

    def __init__(self, lr: float | Tensor, grad_scale: float | Tensor, step: int | Sequence[Tensor] = 1) -> None:
        self.host: tuple[float, float, int] = (
            0.0 if isinstance(lr, Tensor) else lr,
            1.0 if isinstance(grad_scale, Tensor) else grad_scale,
            1 if isinstance(step, Sequence) else operator.index(step),
        )
        self.device: dict[str, Any] = {}
        if isinstance(lr, Tensor):
            self.device["device_lr"] = lr.raw
        if isinstance(grad_scale, Tensor):
            self.device["device_scale"] = grad_scale.raw
        if isinstance(step, Sequence):
            self.device["steps"] = [x.raw for x in step]


def _inputs(
    op: str,
    params: Sequence[Array],
    grads: Sequence[Array | SparseRows],
    masters: Sequence[Array | None] | None,
    scales: Sequence[Array | None] | None,
    rounding: tuple[bool, int | None, int],
    scalars: _Scalars,
    *states: Sequence[_C.Tensor],
) -> _C.StepInputs:
    """Return what all steps take; ``rounding`` is (stochastic_rounding, seed, offset)."""
    drawn = any(x.dtype in ("bfloat16", "uint8") for tensors in states for x in tensors)
    return _C.StepInputs(
        in_place(params, "params", op),
        _values(grads, op),
        [g.indices if isinstance(g, SparseRows) else None for g in grads],
        _optional(masters, "masters", op),
        _optional(scales, "scales", op),
        **rounding_options(*rounding, op, drawn_states=drawn),
        **scalars.device,
    )


def written(*lists: Sequence[Array | None]) -> None:
    """Let the tensors among these arrays know that they were changed in place."""
    for arrays in lists:
        for x in arrays:
            if isinstance(x, Tensor):
                x.version += 1


def sgd(
    params: Sequence[Array],
    grads: Sequence[Array | SparseRows],
    buffers: Sequence[Array] = (),
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    l1: float = 0.0,
    grad_scale: float | Tensor = 1.0,
    masters: Sequence[Array | None] | None = None,
    scales: Sequence[Array | None] | None = None,
    stochastic_rounding: bool = False,
    seed: int | None = None,
    offset: int = 0,
    steps: Sequence[Tensor] = (),
) -> None:
    """Stochastic gradient descent: ``b = momentum b + g; p -= lr b``, or ``p -= lr (g + momentum b)`` by Nesterov.

    Args:
        params: arrays of float dtypes, changed in place; they must not overlap.
        grads: one for each, of its shape and dtype, or ``SparseRows``.
        buffers: one for each, float32 (float64 for float64), changed in place; none without momentum.
        lr: the learning rate.
        momentum: how much of the buffer stays.
        nesterov: look ahead.
        weight_decay: factor of ``p`` in the gradient.
        l1: factor of ``sign(p)`` in the gradient.
        grad_scale: factor of the gradient.
        masters: float32 copies of the 16-bit parameters, changed in place; None for a parameter without one.
        scales: those of states in uint8, (S, ceil(size / 256)) float32 for S states, changed in place, zeros at first;
            None for a parameter without.
        stochastic_rounding: round 16-bit parameters to either neighbour; not together with masters.
        seed: the key of what is drawn for that, and for narrow states, 0 to 2^64 - 1; by default the next stream of
            :func:`drupe.manual_seed`'s, whose offset takes the place of ``offset``.
        offset: which of the seed's 2^64 streams.
        steps: counts of the parameters' steps on the device, or none.

    Raises:
        ValueError: shapes that differ, a read-only array, overlapping arrays, a hyperparameter that is negative or
            not finite, ``nesterov`` without momentum, a master with stochastic rounding. The message names the
            array's place in its list.
        TypeError: dtypes that do not fit; a master for a parameter that is not of 16 bits.

    Reference:
        I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013, section 2.
    """
    scalars = _Scalars(lr, grad_scale, steps)
    rounding = (stochastic_rounding, seed, offset)
    states = in_place(buffers, "buffers", "sgd")
    _C.sgd(
        _inputs("sgd", params, grads, masters, scales, rounding, scalars, states),
        states,
        lr=scalars.host[0],
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        l1=l1,
        grad_scale=scalars.host[1],
    )
    written(params, buffers, masters or (), scales or ())


def adam(
    params: Sequence[Array],
    grads: Sequence[Array | SparseRows],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    *,
    step: int | Sequence[Tensor],
    lr: float | Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    l1: float = 0.0,
    grad_scale: float | Tensor = 1.0,
    masters: Sequence[Array | None] | None = None,
    scales: Sequence[Array | None] | None = None,
    stochastic_rounding: bool = False,
    seed: int | None = None,
    offset: int = 0,
) -> None:
    """Adam: ``p -= lr m' / (sqrt(v') + eps)`` with the bias-corrected means m' of ``g`` and v' of ``g²``.

    Args:
        params: arrays of float dtypes, changed in place; they must not overlap.
        grads: one for each, of its shape and dtype, or ``SparseRows``.
        exp_avgs: the means of the gradients, float32 (float64 for float64), changed in place; zeros at first.
        exp_avg_sqs: the means of their squares, likewise.
        step: the number of this step, from 1.
        lr: the learning rate.
        betas: how much of either mean stays, in [0, 1).
        eps: keeps the quotient finite.
        weight_decay: factor of ``p`` in the gradient.
        l1: factor of ``sign(p)`` in the gradient.
        grad_scale: factor of the gradient.
        masters: float32 copies of the 16-bit parameters, changed in place; None for a parameter without one.
        scales: those of states in uint8, (S, ceil(size / 256)) float32 for S states, changed in place, zeros at first;
            None for a parameter without.
        stochastic_rounding: round 16-bit parameters to either neighbour; not together with masters.
        seed: the key of what is drawn for that, and for narrow states, 0 to 2^64 - 1; by default the next stream of
            :func:`drupe.manual_seed`'s, whose offset takes the place of ``offset``.
        offset: which of the seed's 2^64 streams.

    Raises:
        ValueError: as :func:`sgd`; and ``step`` below 1.
        TypeError: dtypes that do not fit.

    Reference:
        D. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1.
    """
    hyper = _AdamOptions(step, lr, betas, eps, weight_decay, l1, grad_scale, decoupled=False)
    _adam(params, grads, exp_avgs, exp_avg_sqs, hyper, masters, scales, (stochastic_rounding, seed, offset))


def adamw(
    params: Sequence[Array],
    grads: Sequence[Array | SparseRows],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    *,
    step: int | Sequence[Tensor],
    lr: float | Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    l1: float = 0.0,
    grad_scale: float | Tensor = 1.0,
    masters: Sequence[Array | None] | None = None,
    scales: Sequence[Array | None] | None = None,
    stochastic_rounding: bool = False,
    seed: int | None = None,
    offset: int = 0,
) -> None:
    """Adam with decoupled weight decay: ``p *= 1 - lr weight_decay`` first, then :func:`adam` without it.

    Arguments and errors are those of :func:`adam`.

    Reference:
        I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.
    """
    hyper = _AdamOptions(step, lr, betas, eps, weight_decay, l1, grad_scale, decoupled=True)
    _adam(params, grads, exp_avgs, exp_avg_sqs, hyper, masters, scales, (stochastic_rounding, seed, offset))


class _AdamOptions(NamedTuple):
    step: int | Sequence[Tensor]
    lr: float | Tensor
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    l1: float
    grad_scale: float | Tensor
    decoupled: bool


def _adam(
    params: Sequence[Array],
    grads: Sequence[Array | SparseRows],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    options: _AdamOptions,
    masters: Sequence[Array | None] | None,
    scales: Sequence[Array | None] | None,
    rounding: tuple[bool, int | None, int],
) -> None:
    op = "adamw" if options.decoupled else "adam"
    scalars = _Scalars(options.lr, options.grad_scale, options.step)
    means, squares = in_place(exp_avgs, "exp_avgs", op), in_place(exp_avg_sqs, "exp_avg_sqs", op)
    _C.adam(
        _inputs(op, params, grads, masters, scales, rounding, scalars, means, squares),
        means,
        squares,
        lr=scalars.host[0],
        beta1=options.betas[0],
        beta2=options.betas[1],
        eps=options.eps,
        weight_decay=options.weight_decay,
        l1=options.l1,
        grad_scale=scalars.host[1],
        step=scalars.host[2],
        decoupled=options.decoupled,
    )
    written(params, exp_avgs, exp_avg_sqs, masters or (), scales or ())


def rmsprop(
    params: Sequence[Array],
    grads: Sequence[Array | SparseRows],
    square_avgs: Sequence[Array],
    grad_avgs: Sequence[Array] = (),
    buffers: Sequence[Array] = (),
    *,
    lr: float | Tensor = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float = 0.0,
    l1: float = 0.0,
    grad_scale: float | Tensor = 1.0,
    masters: Sequence[Array | None] | None = None,
    scales: Sequence[Array | None] | None = None,
    stochastic_rounding: bool = False,
    seed: int | None = None,
    offset: int = 0,
    steps: Sequence[Tensor] = (),
) -> None:
    """RMSprop: ``p -= lr g / (sqrt(v) + eps)`` with the mean v of ``g²``, less the squared mean of ``g`` if centered.

    Args:
        params: arrays of float dtypes, changed in place; they must not overlap.
        grads: one for each, of its shape and dtype, or ``SparseRows``.
        square_avgs: the means of the squared gradients, float32 (float64 for float64), changed in place; zeros at
            first.
        grad_avgs: the means of the gradients, likewise; none unless centered.
        buffers: the momentum, likewise; none without.
        lr: the learning rate.
        alpha: how much of the means stays, in [0, 1).
        eps: keeps the quotient finite.
        momentum: with b = momentum b + quotient, ``p -= lr b``.
        centered: divide by the standard deviation.
        weight_decay: factor of ``p`` in the gradient.
        l1: factor of ``sign(p)`` in the gradient.
        grad_scale: factor of the gradient.
        masters: float32 copies of the 16-bit parameters, changed in place; None for a parameter without one.
        scales: those of states in uint8, (S, ceil(size / 256)) float32 for S states, changed in place, zeros at first;
            None for a parameter without.
        stochastic_rounding: round 16-bit parameters to either neighbour; not together with masters.
        seed: the key of what is drawn for that, and for narrow states, 0 to 2^64 - 1; by default the next stream of
            :func:`drupe.manual_seed`'s, whose offset takes the place of ``offset``.
        offset: which of the seed's 2^64 streams.
        steps: counts of the parameters' steps on the device, or none.

    Raises:
        ValueError: as :func:`sgd`.
        TypeError: dtypes that do not fit.

    Reference:
        G. Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012; centered: A. Graves, "Generating
        Sequences With Recurrent Neural Networks", arXiv:1308.0850, section 4.2.
    """
    scalars = _Scalars(lr, grad_scale, steps)
    rounding = (stochastic_rounding, seed, offset)
    squares, momenta = in_place(square_avgs, "square_avgs", "rmsprop"), in_place(buffers, "buffers", "rmsprop")
    _C.rmsprop(
        _inputs("rmsprop", params, grads, masters, scales, rounding, scalars, squares, momenta),
        squares,
        in_place(grad_avgs, "grad_avgs", "rmsprop"),
        momenta,
        lr=scalars.host[0],
        alpha=alpha,
        eps=eps,
        momentum=momentum,
        centered=centered,
        weight_decay=weight_decay,
        l1=l1,
        grad_scale=scalars.host[1],
    )
    written(params, square_avgs, grad_avgs, buffers, masters or (), scales or ())


def global_norm(arrays: Sequence[Array | SparseRows]) -> float:
    """Return the Euclidean norm of all elements of all arrays, ``sqrt(sum x²)``.

    One pass; squares that leave float32's range are summed in float64.

    Args:
        arrays: of float dtypes, or ``SparseRows``.

    Raises:
        TypeError: a dtype that is not float.
    """
    values = _values(arrays, "global_norm")
    return float(_C.sum_of_squares(values) ** 0.5)


def clip_factor(arrays: Sequence[Array | SparseRows], max_norm: float) -> tuple[Tensor, Tensor]:
    """Return the norm of all elements of all arrays, and by what clipping multiplies them: ``min(1, max_norm / norm)``.

    The factor of a norm that is not finite is 1. Nothing is waited for.

    Args:
        arrays: of float dtypes, or ``SparseRows``, on one device.
        max_norm: a finite number above 0.

    Returns:
        Two float64 tensors of no dimensions, where the arrays lie.

    Raises:
        ValueError: ``max_norm`` is not a finite number above 0, or the arrays lie on several devices.
        TypeError: a dtype that is not float.
    """
    values = _values(arrays, "clip_factor")
    both = _C.clip_factor(values, max_norm)
    return Tensor(both.select(0, 0)), Tensor(both.select(0, 1))
