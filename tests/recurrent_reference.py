"""lstm and gru in NumPy float64, sequence by sequence, and what the tests of both share."""

from __future__ import annotations

import numpy as np

import drupe
from drupe import ops
from reference import dtype, f64

GATES = {"lstm": 4, "gru": 3}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(a, u, h, c):
    i, f, g, o = np.split(a + u, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_step(a, u, h):
    (a_r, a_z, a_n), (u_r, u_z, u_n) = np.split(a, 3), np.split(u, 3)
    z = sigmoid(a_z + u_z)
    return ((1 - z) * np.tanh(a_n + sigmoid(a_r + u_r) * u_n) + z * h,)


STEPS = {"lstm": lstm_step, "gru": gru_step}


def reference(kind, x, weights, states=None, lengths=None):
    """Return y and the last states, for the weights of one or two directions."""
    x = f64(x)
    T, B, _ = x.shape
    H = weights[0][1].shape[1]
    kinds = 2 if kind == "lstm" else 1
    last = [f64(s).copy() for s in states] if states else [np.zeros((len(weights), B, H)) for _ in range(kinds)]
    y = np.zeros((T, B, len(weights) * H))
    for d, (weight_ih, weight_hh, bias_ih, bias_hh) in enumerate(weights):
        for b in range(B):
            steps = range(T if lengths is None else lengths[b])
            for t in steps if d == 0 else reversed(steps):
                a, u = f64(weight_ih) @ x[t, b], f64(weight_hh) @ last[0][d, b]
                a = a if bias_ih is None else a + f64(bias_ih)
                u = u if bias_hh is None else u + f64(bias_hh)
                for state, value in zip(last, STEPS[kind](a, u, *(s[d, b] for s in last)), strict=True):
                    state[d, b] = value
                y[t, b, d * H : (d + 1) * H] = last[0][d, b]
    return y, *last


class Problem:
    """Random operands of a layer."""

    def __init__(self, kind, rng, T, B, I, H, D, name="float64"):  # noqa: E741
        rows = GATES[kind] * H

        def draw(*shape):
            return (rng.standard_normal(shape) / np.sqrt(shape[-1] if shape[-1] > 0 else 1)).astype(dtype(name))

        self.kind = kind
        self.x = rng.standard_normal((T, B, I)).astype(dtype(name))
        self.weights = [[draw(rows, I), draw(rows, H), draw(rows), draw(rows)] for _ in range(D)]
        self.states = [rng.standard_normal((D, B, H)).astype(dtype(name)) for _ in range(2 if kind == "lstm" else 1)]

    def run(self, *, lengths=None, with_states=True):
        """Call the op."""
        return call(self.kind, self.x, self.weights, self.states if with_states else None, lengths)

    def expected(self, *, lengths=None, with_states=True):
        """Call the reference."""
        return reference(self.kind, self.x, self.weights, self.states if with_states else None, lengths)

    def arrays(self):
        """Return all operands, flat: x, the weights, the states."""
        return [self.x, *(w for direction in self.weights for w in direction), *self.states]

    def call_flat(self, arrays, lengths=None):
        """Call the op on operands in that order."""
        D = len(self.weights)
        x, flat, states = arrays[0], arrays[1 : 1 + 4 * D], arrays[1 + 4 * D :]
        return call(self.kind, x, [flat[i : i + 4] for i in range(0, 4 * D, 4)], states, lengths)


def call(kind, x, weights, states=None, lengths=None):
    """Call the op of that name."""
    options = dict(zip(("h0", "c0"), states, strict=False)) if states else {}
    return getattr(ops, kind)(x, *weights, lengths=lengths, **options)


def joined(results):
    """Return all results as one row, so that a test weighs each of them."""
    return ops.concat([ops.reshape(r, (-1,)) for r in results])


def leaves_of(problem):
    """Return the operands as tensors that want gradients."""
    return [drupe.tensor(a, requires_grad=True) for a in problem.arrays()]
