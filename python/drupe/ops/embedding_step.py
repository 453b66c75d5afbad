"""The backward pass of an embedding and a step of its table's optimizer, in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drupe import _C
from drupe.ops._call import Array
from drupe.ops.optimizer import in_place, rounding_options, written
from drupe.tensor import Tensor, share, share_in_place


def embedding_step(
    weight: Array,
    dy: Array,
    indices: Array,
    states: Sequence[Array] = (),
    *,
    optimizer: str = "rowwise_adagrad",
    padding_idx: int | None = None,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    step: int = 1,
    stochastic_rounding: bool = False,
    seed: int | None = None,
    offset: int = 0,
) -> None:
    """Step an embedding's table by the gradient of ``weight[indices]``, in place.

    The arguments are those of :func:`embedding_bag_step`, but for ``dy``, (*indices.shape, D), and ``indices``, of any
    shape.
    """
    _step(
        "embedding_step",
        (weight, dy, indices),
        states,
        (padding_idx,),
        (),
        optimizer=optimizer,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
        grad_scale=grad_scale,
        step=step,
        **rounding_options(stochastic_rounding, seed, offset, "embedding_step"),
    )


def embedding_bag_step(
    weight: Array,
    dy: Array,
    indices: Array,
    offsets: Array | None = None,
    states: Sequence[Array] = (),
    *,
    optimizer: str = "rowwise_adagrad",
    mode: str = "sum",
    per_sample_weights: Array | None = None,
    padding_idx: int | None = None,
    tables: Sequence[int] = (),
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    step: int = 1,
    stochastic_rounding: bool = False,
    seed: int | None = None,
    offset: int = 0,
) -> None:
    """Step a table by the gradient of :func:`embedding_bag`, in place, touching only the rows that it has.

    The rows of ``dy`` are sorted by index, and each row's sum, in the order of the indices and in float32 for 16-bit
    dtypes, goes straight into the table: there is no gradient in memory. With ``g = grad_scale g + weight_decay w``:

    - ``"rowwise_adagrad"``: ``s += mean(g²); w -= lr / (sqrt(s) + eps) g``, with one number s for each row;
    - ``"sgd"``: ``w -= lr g``;
    - ``"adam"``, ``"adamw"``: as :func:`adam` and :func:`adamw` with a sparse gradient ("lazy").

    Args:
        weight: (V, D), a float dtype, changed in place; rows with any stride, adjacent columns.
        dy: (B, D), the gradient of the bags, of ``weight``'s dtype; (B, T, D) with ``tables``.
        indices: (N,) beside ``offsets``, or (B, L); int32 or int64, in [0, V).
        offsets: (B,), as in :func:`embedding_bag`.
        states: changed in place, float32 (float64 for a float64 table), zeros at first: (V,) for rowwise_adagrad,
            none for sgd, the means of g and of g², each (V, D), for adam and adamw.
        optimizer: the rule.
        mode: ``"sum"`` or ``"mean"``.
        per_sample_weights: as in :func:`embedding_bag`.
        padding_idx: a row in [-V, V) that is left alone.
        tables: how many rows each of T tables has, as in :func:`embedding_bag`: one step of all of them.
        lr: the learning rate.
        betas: how much of adam's means stays, in [0, 1).
        eps: keeps the quotients finite.
        weight_decay: factor of ``w`` in the gradient; adamw shrinks ``w`` by ``lr weight_decay`` instead.
        grad_scale: factor of the gradient.
        step: the number of this step, from 1, for adam.
        stochastic_rounding: round a 16-bit table to either neighbour, as :func:`sgd` does its first parameter.
        seed: the key of what is drawn for that; by default the next stream of :func:`drupe.manual_seed`'s.
        offset: which of the seed's 2^64 streams.

    Raises:
        IndexError: an index or ``padding_idx`` that is not in the table, with its place; nothing has changed then.
        ValueError: shapes that do not fit, an unknown optimizer or mode, arrays that overlap or are read-only, a
            hyperparameter that is negative or not finite, what :func:`embedding_bag` refuses.
        TypeError: dtypes that do not fit.

    Reference:
        J. Duchi et al., "Adaptive Subgradient Methods", JMLR 12, 2011; by rows: D. Mudigere et al., "Software-Hardware
        Co-design for Fast and Scalable Training of Deep Learning Recommendation Models", ISCA 2022, section 4.1.
    """
    op = "embedding_bag_step"
    _step(
        op,
        (weight, dy, indices),
        states,
        (mode, tables, padding_idx),
        (offsets, per_sample_weights),
        optimizer=optimizer,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
        grad_scale=grad_scale,
        step=step,
        **rounding_options(stochastic_rounding, seed, offset, op),
    )


def _step(
    op: str,
    arrays: tuple[Array, Array, Array],
    states: Sequence[Array],
    own: tuple[Any, ...],
    bags: tuple[Array | None, ...],
    **options: Any,
) -> None:
    weight, dy, indices = arrays
    table = share_in_place(weight, op, "weight")

    def beside(x: Array | None) -> _C.Tensor | None:
        """Take an array of the host that is no tensor to the table's device."""
        if x is None:
            return None
        raw = share(x, op)
        return raw if isinstance(x, Tensor) or raw.device != "cpu" else _C.to_device(raw, table.device)

    lists = in_place(states, "states", op)
    getattr(_C, op)(table, beside(dy), beside(indices), lists, *map(beside, bags), *own, **options)
    written((weight,), states)
