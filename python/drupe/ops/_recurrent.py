"""What lstm and gru share: a layer's weights as inputs of a call, and its record on the tape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drupe import _C
from drupe.ops._call import A, Array, Call

# (weight_ih, weight_hh), or (weight_ih, weight_hh, bias_ih, bias_hh) where a bias may be None.
Weights = Sequence[Any]


def _flat(op: str, name: str, weights: Weights) -> list[Any]:
    count = len(weights) if isinstance(weights, Sequence) else 0
    if count not in (2, 4) or weights[0] is None or weights[1] is None:
        raise ValueError(
            f"[{op}] {name} has {count} arrays: expected weight_ih and weight_hh, bias_ih and bias_hh or neither"
        )
    return [*weights, None, None][:4]


def recurrent(
    op: str,
    x: A,
    weights: Weights,
    reverse_weights: Weights | None,
    h0: Array | None,
    c0: Array | None,
    lengths: Array | None,
) -> tuple[A, ...]:
    """Return y, h and, for lstm, c."""
    flat = _flat(op, "weights", weights)
    if reverse_weights is not None:
        flat += _flat(op, "reverse_weights", reverse_weights)
    call = Call(op, x, *flat, h0, c0, lengths)
    rx, *rweights, rh0, rc0, rlengths = call.raw
    directions = [tuple(rweights[i : i + 4]) for i in range(0, len(rweights), 4)]
    y, h, c, saved = getattr(_C, op)(rx, directions, rh0, rc0, rlengths, call.recorded)

    def backward(
        dy: _C.Tensor | None, dh: _C.Tensor | None, dc: _C.Tensor | None = None
    ) -> tuple[_C.Tensor | None, ...]:
        wanted = [[call.needs_grad(1 + 4 * d + i) for i in range(4)] for d in range(len(directions))]
        dx, dweights, dh0, dc0 = getattr(_C, f"{op}_backward")(
            dy, dh, dc, rx, directions, rlengths, saved, call.needs_grad(0), wanted
        )
        return dx, *(gradient for direction in dweights for gradient in direction), dh0, dc0, None

    return call.outputs((y, h) if c is None else (y, h, c), backward)
