"""Packed weights of convolutions: the same bits as the weight itself."""

import numpy as np
import pytest

import drupe
from drupe import ops

# C, K, R, S and options: pointwise, strided, a stem of odd depth, minimal filtering twice, more than one slice, groups
CASES = [
    (20, 40, 1, 1, {}),
    (20, 33, 1, 1, {"stride": 2}),
    (3, 16, 7, 7, {"stride": 2, "padding": 3}),
    (16, 32, 3, 3, {"padding": 1}),
    (77, 70, 3, 3, {"padding": 1}),
    (300, 35, 3, 3, {"padding": 1, "stride": 2}),
    (4, 6, 2, 3, {"groups": 2, "dilation": 2}),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize(("C", "K", "R", "S", "options"), CASES)
def test_packed_filters_give_the_same_bits(isa, rng, dtype, C, K, R, S, options):
    x = drupe.tensor(rng.standard_normal((2, 9, 10, C))).astype(dtype)
    weight = drupe.tensor(rng.standard_normal((K, C // options.get("groups", 1), R, S))).astype(dtype)
    bias = drupe.tensor(rng.standard_normal(K)).astype(dtype)
    packed = ops.pack_filters(weight, **options)
    common = {"bias": bias, "activation": "relu", "layout": "NHWC", **options}
    expected = ops.conv2d(x, weight, **common).astype("float64").numpy()
    np.testing.assert_array_equal(ops.conv2d(x, packed, **common).astype("float64").numpy(), expected)
    wide = [drupe.tensor(t.astype("float64").numpy()) for t in (x, weight, bias)]
    exact = ops.conv2d(wide[0], wide[1], **{**common, "bias": wide[2]}).numpy()
    tolerance = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(expected, exact, rtol=tolerance, atol=tolerance * np.abs(exact).max())


def test_bias_and_residual_on_whole_tiles(isa, rng):
    x = rng.standard_normal((1, 5, 6, 40), dtype=np.float32)
    weight = rng.standard_normal((96, 40, 1, 1), dtype=np.float32)
    bias, residual = rng.standard_normal(96, dtype=np.float32), rng.standard_normal((1, 5, 6, 96), dtype=np.float32)
    y = ops.conv2d(x, ops.pack_filters(weight), bias=bias, residual=residual, activation="relu", layout="NHWC")
    expected = np.maximum(x.astype(float) @ weight[:, :, 0, 0].T.astype(float) + bias + residual, 0)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("C", "R", "options"), [(8, 1, {}), (8, 3, {"padding": 1}), (1, 7, {"padding": 3})])
def test_large_results_have_the_same_bits(isa, rng, dtype, C, R, options):
    """Some go past the caches, and those of single images do not."""
    x = drupe.tensor(rng.standard_normal((30, 40, 41, C))).astype(dtype)
    packed = ops.pack_filters(drupe.tensor(rng.standard_normal((96, C, R, R))).astype(dtype), **options)
    bias = drupe.tensor(rng.standard_normal(96)).astype(dtype)
    common = {"bias": bias, "activation": "relu", "layout": "NHWC", **options}
    for residual in (None, ops.conv2d(x, packed, **common)):
        y = ops.conv2d(x, packed, residual=residual, **common)
        for i in range(30):
            part = None if residual is None else residual[i : i + 1]
            expected = ops.conv2d(x[i : i + 1], packed, residual=part, **common).astype("float32").numpy()
            np.testing.assert_array_equal(y[i : i + 1].astype("float32").numpy(), expected)


def test_a_convolution_of_several_groups_reads_the_weight(isa, rng):
    """Packed for one group, the panels of a weight of the same shape are of other matrices."""
    weight = rng.standard_normal((64, 8, 2, 2), dtype=np.float32)
    x = rng.standard_normal((1, 16, 6, 6), dtype=np.float32)
    y = ops.conv2d(x, ops.pack_filters(weight), groups=2)
    np.testing.assert_array_equal(y, ops.conv2d(x, weight, groups=2))


def test_errors():
    with pytest.raises(ValueError, match=r"\[pack_filters\] weight is \(3, 4\): expected 4 dimensions"):
        ops.pack_filters(np.zeros((3, 4), np.float32))
    with pytest.raises(TypeError, match=r"\[pack_filters\] weight is int32"):
        ops.pack_filters(np.zeros((3, 4, 1, 1), np.int32))
    with pytest.raises(ValueError, match="algorithm"):
        ops.pack_filters(np.zeros((3, 4, 1, 1), np.float32), algorithm="winograd")
