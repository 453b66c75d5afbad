"""The convolution by minimal filtering, on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from conv2d_reference import check_geometry, check_odd_memory, draw, reference, sides
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

# N, C, H, W, K, options: below, at and above a block of results, the registers, the panels, the slices of channels and
# the patches of a task.
CASES = [
    (1, 1, 1, 1, 2, {"padding": 1}),
    (1, 3, 3, 3, 2, {}),
    (2, 16, 4, 4, 32, {"padding": 1}),
    (1, 17, 5, 9, 33, {"padding": 1}),
    (3, 64, 8, 8, 70, {"padding": (0, 2, 1, 0)}),
    (1, 65, 11, 6, 31, {"padding": 4}),
    (1, 130, 7, 7, 100, {"padding": 1}),
    (1, 1100, 4, 5, 90, {"padding": 1}),
    (2, 40, 33, 30, 48, {"padding": 1}),
    (5, 20, 29, 31, 5, {"padding": "same"}),
    (1, 1000, 31, 30, 6, {"padding": 1}),  # more patches than the gradient of the weight takes at once
]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(isa, rng, name, case):
    N, C, H, W, K, options = case
    x, w = (drupe.tensor(draw(rng, s, name), requires_grad=True) for s in ((N, C, H, W), (K, C, 3, 3)))
    padding = 1 if options.get("padding") == "same" else options.get("padding", 0)
    z = reference(x.detach(), w.detach(), padding=padding)
    bias, residual = draw(rng, K, name), draw(rng, z.shape, name)
    y = ops.conv2d(x, w, bias=bias, residual=residual, activation="relu", algorithm="winograd", **options)
    z += f64(bias)[:, None, None] + f64(residual)
    worse = {"float16": 1, "bfloat16": 2}.get(name, 3)
    assert_close(y.detach(), np.maximum(z, 0), name, 9 * C, worse * np.sqrt(9 * C))
    dy = draw(rng, y.shape, name)
    y.backward(dy)
    dz = np.where(f64(y.detach()) > 0, f64(dy), 0)
    top, _, left, _ = sides(padding)
    turned = f64(w.detach())[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    full = reference(dz, turned, padding=2)[:, :, top : top + H, left : left + W]  # of the part that is no padding
    assert_close(x.grad, full, name, 9 * K, worse * np.sqrt(9 * K))
    _, bottom, _, right = sides(padding)
    padded = np.pad(f64(x.detach()), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, z.shape[2:], (2, 3))  # (N, C, 3, 3, P, Q)
    expected = np.einsum("nkpq,ncrspq->kcrs", dz, windows, optimize=True)
    pixels = N * z.shape[2] * z.shape[3]
    assert_close(w.grad, expected, name, pixels, worse * np.sqrt(pixels))


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_memory_that_vectors_cannot_read(isa, rng, name):
    check_odd_memory(rng, name, 1, "winograd")


def test_random_geometries(isa, rng):
    for _ in range(60):
        check_geometry(rng, (3, 3), "winograd")


def test_gradients(rng):
    x, w, bias = draw(rng, (1, 3, 6, 5)), draw(rng, (4, 3, 3, 3)), draw(rng, 4)
    check_gradients(
        lambda x, w, b: ops.conv2d(x, w, bias=b, padding=1, activation="silu", algorithm="winograd"),
        x,
        w,
        bias,
        rng=rng,
    )


@pytest.mark.parametrize(("name", "largest"), [("float32", 1.5e-5), ("bfloat16", 0.03)])
def test_error_is_as_documented(isa, rng, name, largest):
    arrays = draw(rng, (2, 32, 36, 36), name), draw(rng, (24, 32, 3, 3), name)
    dy = draw(rng, (2, 24, 36, 36), name)

    def results(dtype, algorithm):
        leaves = [drupe.tensor(a.astype(dtype), requires_grad=True) for a in arrays]
        y = ops.conv2d(*leaves, padding=1, algorithm=algorithm)
        y.backward(dy.astype(dtype))
        return [f64(y.detach()), *(f64(leaf.grad) for leaf in leaves)]

    exact = results(np.float64, "direct")
    error = {
        a: [np.abs(r - e) / e.std() for r, e in zip(results(dtype(name), a), exact, strict=True)]
        for a in ("direct", "winograd")
    }
    for plain, fast in zip(error["direct"], error["winograd"], strict=True):
        assert 0.99 * plain.mean() < fast.mean() < 4 * plain.mean()
        assert fast.max() < largest


def test_auto_takes_it_where_it_pays(isa, rng):
    def same(C, K, size, name="float32"):
        """Whether direct and winograd agree with auto, in the result and in the gradients."""
        x, w = draw(rng, (2, C, *size), name), draw(rng, (K, C, 3, 3), name)
        results = {}
        for algorithm in ("auto", "direct", "winograd"):
            leaves = [drupe.tensor(a, requires_grad=True) for a in (x, w)]
            y = ops.conv2d(*leaves, padding=1, algorithm=algorithm)
            y.backward(np.ones(y.shape, y.dtype))
            results[algorithm] = (y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves))
        pairs = [zip(results["auto"], results[a], strict=True) for a in ("direct", "winograd")]
        return [[np.array_equal(a, b) for a, b in pair] for pair in pairs]

    direct, winograd = [True] * 3, [False] * 3
    fast = [direct, winograd] if isa == "scalar" else [winograd, direct]
    assert same(64, 64, (30, 30)) == fast
    assert same(8, 9, (8, 8)) == fast
    assert same(64, 64, (30, 30), "float64") == [direct, winograd]
    assert same(64, 64, (4, 4)) == [direct, winograd]  # few patches
    assert same(64, 64, (5, 41)) == fast
    for shape in ((8, 9, (8, 8)), (130, 40, (14, 14))):
        assert same(*shape, "bfloat16")[isa != "scalar"] == [True] * 3  # rounded, all may agree
    assert same(64, 64, (1, 60)) == [direct, winograd]  # mostly beyond the image
    assert same(7, 7, (30, 30)) == [direct, winograd]  # few channels


def test_results_stop_at_what_windows_see(rng):
    """The gradient of a padded image skips what only padding saw, whatever it is."""
    x, w = drupe.tensor(draw(rng, (1, 8, 1, 4)), requires_grad=True), draw(rng, (8, 8, 3, 3))
    y = ops.conv2d(x, w, padding=4, algorithm="winograd")
    dy = draw(rng, y.shape)
    dy[:, :, 5:] = np.nan  # windows from row 5 on begin below the image
    y.backward(dy)
    assert np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_nan_spreads_through_its_blocks_alone(isa, name):
    x = np.zeros((1, 20, 20, 20), dtype(name))
    x[0, 3, 9, 4] = np.nan
    x[0, 3, 17, 17] = np.inf
    y = f64(ops.conv2d(x, np.ones((5, 20, 3, 3), x.dtype), padding=1, algorithm="winograd"))
    must, may = np.zeros((2, 20, 20), bool)
    must[8:11, 3:6] = must[16:19, 16:19] = True
    may[8:12, :8] = may[16:, 16:] = True
    assert not np.isfinite(y[:, :, must]).any()
    np.testing.assert_array_equal(y[:, :, ~may], 0)


def test_nothing(isa):
    assert ops.conv2d(np.zeros((0, 3, 5, 5)), np.zeros((4, 3, 3, 3)), algorithm="winograd").shape == (0, 4, 3, 3)
    y = ops.conv2d(np.zeros((1, 0, 5, 5)), np.zeros((2, 0, 3, 3)), bias=np.array([1.0, 2.0]), algorithm="winograd")
    np.testing.assert_array_equal(y[0, :, 1, 1], [1, 2])


@pytest.mark.parametrize(
    ("weight", "options", "window"),
    [
        ((4, 4, 3, 2), {}, "3 x 2"),
        ((4, 4, 5, 5), {}, "5 x 5"),
        ((4, 4, 3, 3), {"stride": (1, 2)}, r"stride \(1, 2\)"),
        ((4, 4, 3, 3), {"dilation": (2, 1)}, r"dilation \(2, 1\)"),
        ((4, 2, 3, 3), {"groups": 2}, "groups 2"),
    ],
)
def test_other_windows_are_refused(weight, options, window):
    with pytest.raises(
        ValueError, match=rf"\[conv2d\] algorithm is winograd, the window .*{window}.*: it is for 3 x 3"
    ):
        ops.conv2d(np.ones((1, 4, 9, 9)), np.ones(weight), algorithm="winograd", **options)


@pytest.mark.skipif(not drupe.cuda_status()["available"], reason="needs a device that is not the CPU")
def test_cuda_is_refused():
    x, w = (drupe.ones(shape, device="cuda") for shape in ((1, 4, 9, 9), (4, 4, 3, 3)))
    with pytest.raises(ValueError, match=r"\[conv2d\] algorithm is winograd, the operands lie on cuda:0"):
        ops.conv2d(x, w, algorithm="winograd")
