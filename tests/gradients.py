"""Gradients by central differences."""

from __future__ import annotations

import numpy as np

import drupe


def check_gradients(function, *arrays, rng, differentiable=None, step=1e-6, tolerance=1e-6):
    """Compare the tape's gradients of sum(function(*tensors) * weights) with central differences, in float64.

    `function` takes and gives drupe tensors. `differentiable` says which arrays to differentiate by (all float ones
    by default).
    """
    arrays = [np.array(a) for a in arrays]
    if differentiable is None:
        differentiable = [i for i, a in enumerate(arrays) if a.dtype == np.float64]
    assert differentiable, "nothing to differentiate by"
    leaves = [drupe.tensor(a, requires_grad=i in differentiable) for i, a in enumerate(arrays)]
    y = function(*leaves)
    weights = rng.standard_normal(y.shape)
    y.backward(weights)

    def value():
        with drupe.no_grad():
            out = function(*[drupe.tensor(a) for a in arrays])
        return float(np.sum(out.numpy() * weights))

    for i in differentiable:
        grad = leaves[i].grad
        assert grad is not None, f"no gradient for argument {i}"
        actual = grad.numpy()
        assert actual.shape == arrays[i].shape
        assert actual.dtype == arrays[i].dtype
        flat = arrays[i].reshape(-1)
        expected = np.empty(flat.size)
        for j in range(flat.size):
            kept = flat[j]
            flat[j] = kept + step
            above = value()
            flat[j] = kept - step
            below = value()
            flat[j] = kept
            expected[j] = (above - below) / (2 * step)
        np.testing.assert_allclose(
            actual.reshape(-1), expected, rtol=tolerance, atol=tolerance * max(1, np.abs(expected).max(initial=0))
        )
