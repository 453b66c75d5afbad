"""What gru has for itself; test_lstm.py tests both."""

from __future__ import annotations

import numpy as np

from drupe import ops


def test_closed_update_gate_keeps_the_state(backend, rng):
    H = 4
    bias = np.concatenate([np.zeros(H), np.full(H, 800.0), np.zeros(H)])
    h0 = rng.standard_normal((1, 3, H))
    x, weight_ih = rng.standard_normal((5, 3, 2)), rng.standard_normal((3 * H, 2))
    y, h = ops.gru(x, (weight_ih, rng.standard_normal((3 * H, H)), bias, None), h0=h0)
    np.testing.assert_array_equal(h, h0)
    np.testing.assert_array_equal(y, np.broadcast_to(h0, y.shape))


def test_reset_gate_comes_after_the_product(backend):
    """With r closed the candidate sees neither the product nor bias_hh; with z closed it is the output."""
    H = 3
    bias_ih = np.concatenate([np.full(H, -800.0), np.full(H, -800.0), np.full(H, 0.5)])
    bias_hh = np.concatenate([np.zeros(2 * H), np.full(H, 7.0)])
    weights = (np.zeros((3 * H, 1)), np.ones((3 * H, H)), bias_ih, bias_hh)
    y, _ = ops.gru(np.zeros((2, 1, 1)), weights)
    np.testing.assert_allclose(y, np.full((2, 1, H), np.tanh(0.5)), rtol=1e-12)
