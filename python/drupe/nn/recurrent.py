"""Recurrent layers, stacked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from drupe import ops
from drupe.nn import init
from drupe.nn.module import Module
from drupe.nn.parameter import Parameter
from drupe.tensor import empty


class _Recurrent(Module):
    """Layers of one kind of cell, each one op; the first takes ``x``, every other one the outputs of the one before."""

    gates: int

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        layers: int = 1,
        bias: bool = True,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        kind = type(self).__name__
        if layers < 1:
            raise ValueError(f"[{kind}] layers is {layers}: expected at least 1")
        if not 0 <= dropout <= 1:
            raise ValueError(f"[{kind}] dropout is {dropout}: expected a probability")
        self.in_features, self.hidden_features, self.layers, self.bias = in_features, hidden_features, layers, bias
        self.batch_first, self.dropout = batch_first, dropout
        self.directions = 2 if bidirectional else 1
        rows, bound = self.gates * hidden_features, 1 / math.sqrt(max(1, hidden_features))
        for layer in range(layers):
            width = in_features if layer == 0 else self.directions * hidden_features
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width), "weight_hh": (rows, hidden_features)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            for direction in range(self.directions):
                for name, shape in shapes.items():
                    parameter = init.uniform(Parameter(empty(shape)), -bound, bound)
                    setattr(self, name + self._suffix(layer, direction), parameter)

    @staticmethod
    def _suffix(layer: int, direction: int) -> str:
        return f"_l{layer}" + ("_reverse" if direction else "")

    def _weights(self, layer: int, direction: int) -> list[Any]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        return [getattr(self, name + self._suffix(layer, direction)) for name in names]

    def _layer(self, x: Any, weights: list[list[Any]], states: list[Any], lengths: Any) -> tuple[Any, ...]:
        """Run one layer from its states, one of each kind or None."""
        raise NotImplementedError

    def _run(self, x: Any, states: list[Any], lengths: Any) -> tuple[Any, list[Any]]:
        """Return y and the last states, one (L D, B, H) of each kind."""
        for state in states:
            if state is not None and tuple(np.shape(state))[:1] != (self.layers * self.directions,):
                raise ValueError(
                    f"[{type(self).__name__}] a state is {tuple(np.shape(state))}: expected "
                    f"({self.layers * self.directions}, B, {self.hidden_features})"
                )
        y = ops.transpose(x, 0, 1) if self.batch_first else x
        last: list[tuple[Any, ...]] = []
        for layer in range(self.layers):
            if layer > 0 and self.training and self.dropout > 0:
                y = ops.dropout(y, self.dropout)
            own = slice(layer * self.directions, (layer + 1) * self.directions)
            weights = [self._weights(layer, direction) for direction in range(self.directions)]
            y, *after = self._layer(y, weights, [s if s is None else ops.getitem(s, own) for s in states], lengths)
            last.append(tuple(after))
        return (
            ops.transpose(y, 0, 1) if self.batch_first else y,
            [ops.concat(kind) if self.layers > 1 else kind[0] for kind in zip(*last, strict=True)],
        )

    def extra_repr(self) -> str:
        """Name the sizes, and what differs from the defaults."""
        extra = f", layers={self.layers}" if self.layers > 1 else ""
        extra += "" if self.bias else ", bias=False"
        extra += ", batch_first=True" if self.batch_first else ""
        extra += f", dropout={self.dropout}" if self.dropout else ""
        extra += ", bidirectional=True" if self.directions == 2 else ""
        return f"{self.in_features}, {self.hidden_features}{extra}"


class LSTM(_Recurrent):
    """Layers of long short-term memory (:func:`drupe.ops.lstm`).

    Args:
        in_features: I, of ``x``.
        hidden_features: H, of the states.
        layers: L; each but the first takes the outputs of the one before.
        bias: whether there are bias_ih and bias_hh.
        batch_first: ``x`` and ``y`` are (B, T, ...) instead of (T, B, ...). States are (L D, B, H) in any case.
        dropout: while training, the probability with which the outputs of each layer but the last are set to zero.
        bidirectional: D is 2: a second direction in each layer walks from the last step to the first.

    Attributes:
        weight_ih_l0: (4 H, I) of the first layer, (4 H, D H) of those after it, weight_ih_l1 and so on; uniform in
            +-1 / sqrt(H) at first, as all. In the order i, f, g, o.
        weight_hh_l0: (4 H, H).
        bias_ih_l0: (4 H,).
        bias_hh_l0: (4 H,).
        weight_ih_l0_reverse: of the second direction, and so on.

    Reference:
        S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997.
    """

    gates = 4

    def _layer(self, x: Any, weights: list[list[Any]], states: list[Any], lengths: Any) -> tuple[Any, ...]:
        return ops.lstm(x, *weights, h0=states[0], c0=states[1], lengths=lengths)

    def forward(
        self, x: Any, state: tuple[Any, Any] | None = None, *, lengths: Any = None
    ) -> tuple[Any, tuple[Any, Any]]:
        """Return (y, (h, c)) for ``x`` (T, B, I): y (T, B, D H), and the states (L D, B, H) after the last step.

        Args:
            x: (B, T, I) with ``batch_first``.
            state: (h0, c0), (L D, B, H) each; zeros by default.
            lengths: (B,), how many steps each sequence has; T by default.
        """
        states = [None, None] if state is None else list(state)
        if len(states) != 2:
            raise ValueError(f"[LSTM] the state has {len(states)} parts: expected h0 and c0")
        y, (h, c) = self._run(x, states, lengths)
        return y, (h, c)


class GRU(_Recurrent):
    """Layers of gated recurrent units (:func:`drupe.ops.gru`).

    Args:
        in_features: I, of ``x``.
        hidden_features: H, of the state.
        layers: L; each but the first takes the outputs of the one before.
        bias: whether there are bias_ih and bias_hh.
        batch_first: ``x`` and ``y`` are (B, T, ...) instead of (T, B, ...). The state is (L D, B, H) in any case.
        dropout: while training, the probability with which the outputs of each layer but the last are set to zero.
        bidirectional: D is 2: a second direction in each layer walks from the last step to the first.

    Attributes:
        weight_ih_l0: (3 H, I) of the first layer, (3 H, D H) of those after it, weight_ih_l1 and so on; uniform in
            +-1 / sqrt(H) at first, as all. In the order r, z, n.
        weight_hh_l0: (3 H, H).
        bias_ih_l0: (3 H,).
        bias_hh_l0: (3 H,).
        weight_ih_l0_reverse: of the second direction, and so on.

    Reference:
        K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
        EMNLP 2014, section 2.3.
    """

    gates = 3

    def _layer(self, x: Any, weights: list[list[Any]], states: list[Any], lengths: Any) -> tuple[Any, ...]:
        return ops.gru(x, *weights, h0=states[0], lengths=lengths)

    def forward(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Any, Any]:
        """Return (y, h) for ``x`` (T, B, I): y (T, B, D H), and the state (L D, B, H) after the last step.

        Args:
            x: (B, T, I) with ``batch_first``.
            state: h0 (L D, B, H); zeros by default.
            lengths: (B,), how many steps each sequence has; T by default.
        """
        y, (h,) = self._run(x, [state], lengths)
        return y, h
