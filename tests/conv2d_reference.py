"""conv2d and its gradients in NumPy float64, and what the tests of its algorithms share."""

from __future__ import annotations

import itertools

import numpy as np

import drupe
from drupe import ops
from reference import ACTIVATIONS, assert_close, dtype, f64


def draw(rng, shape, name="float64"):
    return rng.standard_normal(shape).astype(dtype(name))


def pair(value):
    return (value, value) if isinstance(value, int) else value


def sides(padding):
    """(top, bottom, left, right)."""
    values = (padding,) * 2 if isinstance(padding, int) else padding
    return values if len(values) == 4 else (values[0], values[0], values[1], values[1])


def reference(x, w, *, stride=1, padding=0, dilation=1, groups=1):
    """conv2d of NCHW float64 arrays, tap by tap."""
    (sh, sw), (dh, dw), (top, bottom, left, right) = pair(stride), pair(dilation), sides(padding)
    x = np.pad(f64(x), ((0, 0), (0, 0), (top, bottom), (left, right)))
    w = f64(w)
    K, C, R, S = w.shape
    P = (x.shape[2] - dh * (R - 1) - 1) // sh + 1
    Q = (x.shape[3] - dw * (S - 1) - 1) // sw + 1
    y = np.zeros((x.shape[0], K, P, Q))
    for g, r, s in itertools.product(range(groups), range(R), range(S)):
        rows = slice(r * dh, r * dh + (P - 1) * sh + 1, sh)
        cols = slice(s * dw, s * dw + (Q - 1) * sw + 1, sw)
        k = slice(g * K // groups, (g + 1) * K // groups)
        patch = x[:, g * C : (g + 1) * C, rows, cols]
        y[:, k] += np.einsum("nchw,kc->nkhw", patch, w[k, :, r, s])
    return y


def check_odd_memory(rng, name, groups, algorithm):
    """Images that begin at an odd element give the same bits as aligned ones, whose channels make whole vectors."""

    def place(array, odd):
        if not odd:
            return drupe.tensor(array)
        flat = drupe.tensor(np.concatenate([np.zeros(1, array.dtype), array.ravel()]))
        return ops.reshape(drupe.Tensor(flat.raw.slice(0, 1, flat.size, 1)), array.shape)

    C = 64 if groups == 1 else 16  # enough for the depth to be cut
    x, w = draw(rng, (2, 6, 7, C), name), draw(rng, (32 if groups < 16 else 16, C // groups, 3, 3), name)
    bias, residual = draw(rng, w.shape[0], name), draw(rng, (2, 6, 7, w.shape[0]), name)
    dy = draw(rng, residual.shape, name)
    results = []
    for odd in (False, True):
        leaves = [drupe.Tensor(place(a, odd).raw, requires_grad=True) for a in (x, w, bias, residual)]
        assert not odd or leaves[0].raw.data_ptr % 16 != 0
        y = ops.conv2d(
            *leaves[:2],
            bias=leaves[2],
            residual=leaves[3],
            padding=1,
            groups=groups,
            activation="silu",
            layout="NHWC",
            algorithm=algorithm,
        )
        y.backward(place(dy, odd))
        results.append([y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])
    for aligned, other in zip(*results, strict=True):
        np.testing.assert_array_equal(aligned, other)
    z = reference(x.transpose(0, 3, 1, 2), w, padding=1, groups=groups).transpose(0, 2, 3, 1)
    z += f64(bias) + f64(residual)
    assert_close(results[0][0], ACTIVATIONS["silu"](z), name, w[0].size, 15)


def check_geometry(rng, kernel, algorithm, *, stride=(1, 1), dilation=(1, 1), groups=1):
    """Draw the other sizes, and hold the result and the gradients against the definition, in float64."""
    (R, S), (dh, dw) = kernel, dilation
    C, K = groups * int(rng.integers(1, 20)), groups * int(rng.integers(1, 40))
    padding = tuple(int(v) for v in rng.integers(0, 4, 4))
    H = int(rng.integers(max(1, dh * (R - 1) + 1 - padding[0] - padding[1]), 14))
    W = int(rng.integers(max(1, dw * (S - 1) + 1 - padding[2] - padding[3]), 14))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    x = drupe.tensor(draw(rng, (int(rng.integers(1, 3)), C, H, W)), requires_grad=True)
    w = drupe.tensor(draw(rng, (K, C // groups, R, S)), requires_grad=True)
    y = ops.conv2d(x, w, algorithm=algorithm, **options)
    np.testing.assert_allclose(y.detach().numpy(), reference(x.detach(), w.detach(), **options), rtol=1e-10, atol=1e-10)
    # Linear in x and in w, so <dy, y(u, w)> = <dx, u> for another x, and alike for another w.
    dy = draw(rng, y.shape)
    y.backward(dy)
    u, v = draw(rng, x.shape), draw(rng, w.shape)
    along_x = np.sum(dy * reference(u, w.detach(), **options))
    along_w = np.sum(dy * reference(x.detach(), v, **options))
    np.testing.assert_allclose(np.sum(x.grad.numpy() * u), along_x, rtol=1e-9, atol=1e-7, err_msg=str(options))
    np.testing.assert_allclose(np.sum(w.grad.numpy() * v), along_w, rtol=1e-9, atol=1e-7, err_msg=str(options))
