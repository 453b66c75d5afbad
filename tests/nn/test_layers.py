"""Layers against their ops' definitions, in NumPy; the ops' own suites go deeper."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import nn


def f64(tensor):
    return tensor.detach().numpy().astype(np.float64)


def train(layer, *inputs, **options):
    """Run forward and backward in float64, and check that every parameter got a gradient of its shape."""
    layer.astype("float64")
    y = layer(*inputs, **options)
    y.backward(np.ones(y.shape))
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
    return y.detach().numpy()


# ---- convolution and pooling


def test_conv2d(rng):
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert layer.weight.shape == (6, 2, 3, 3)
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = rng.standard_normal((2, 4, 7, 8))
    y = train(layer, x)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
    w = f64(layer.weight)
    expected = np.concatenate(
        [np.einsum("bchwrs,kcrs->bkhw", windows[:, 2 * g : 2 * g + 2], w[3 * g : 3 * g + 3]) for g in range(2)], 1
    ) + f64(layer.bias).reshape(-1, 1, 1)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)


def test_conv2d_options(rng):
    layer = nn.Conv2d(3, 4, (1, 2), bias=False, activation="relu", layout="NHWC").astype("float64")
    x, residual = rng.standard_normal((2, 3, 5, 3)), rng.standard_normal((2, 3, 4, 4))
    windows = np.lib.stride_tricks.sliding_window_view(x, (1, 2), (1, 2))
    expected = np.maximum(np.einsum("bhwcrs,kcrs->bhwk", windows, f64(layer.weight)) + residual, 0)
    np.testing.assert_allclose(f64(layer(x, residual=residual)), expected, rtol=1e-10, atol=1e-12)
    assert repr(layer) == "Conv2d(3, 4, kernel_size=(1, 2), stride=1, bias=False, relu)"
    assert "groups=2" in repr(nn.Conv2d(4, 4, 1, groups=2))


def test_conv2d_starts_within_its_bound():
    layer = nn.Conv2d(16, 64, 5)
    for tensor in (layer.weight, layer.bias):
        assert 0.8 / 20 < np.abs(f64(tensor)).max() <= 1 / 20


@pytest.mark.parametrize("groups", [0, -1, 3])
def test_groups_that_do_not_divide(groups):
    with pytest.raises(ValueError, match=rf"\[Conv2d\] {groups} groups do not divide 4 input"):
        nn.Conv2d(4, 4, 1, groups=groups)
    with pytest.raises(ValueError, match=rf"\[GroupNorm\] {groups} groups do not divide 4"):
        nn.GroupNorm(groups, 4)


@pytest.mark.parametrize(("layer", "reduce"), [(nn.MaxPool2d(2), np.max), (nn.AvgPool2d(2), np.mean)])
def test_pooling(rng, layer, reduce):
    x = rng.standard_normal((2, 3, 6, 8))
    expected = reduce(x.reshape(2, 3, 3, 2, 4, 2), (3, 5))
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12)
    assert "kernel_size=2, stride=2" in repr(layer)


def test_pooling_options(rng):
    x = rng.standard_normal((1, 5, 5, 2))
    y = nn.MaxPool2d(3, 2, 1, layout="NHWC")(x)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    np.testing.assert_array_equal(y, windows.max((4, 5)))
    np.testing.assert_allclose(nn.AdaptiveAvgPool2d(1, layout="NHWC")(x), x.mean((1, 2), keepdims=True), rtol=1e-12)
    expected = x.mean(2, keepdims=True)
    np.testing.assert_allclose(nn.AdaptiveAvgPool2d((5, 1), layout="NHWC")(x), expected, rtol=1e-12)


# ---- normalisation


def normalise(x, axes, eps):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def fill(layer, rng):
    for parameter in layer.parameters():
        parameter.copy_from(rng.standard_normal(parameter.shape))


@pytest.mark.parametrize("features", [6, (4, 6)])
def test_layer_norm(rng, features):
    layer = nn.LayerNorm(features, eps=1e-3).astype("float64")
    fill(layer, rng)
    x, residual = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 4, 6))
    axes = (2,) if features == 6 else (1, 2)
    expected = normalise(x + residual, axes, 1e-3) * f64(layer.weight) + f64(layer.bias)
    np.testing.assert_allclose(train(layer, x, residual=residual), expected, rtol=1e-10, atol=1e-12)
    assert nn.LayerNorm(3, bias=False).bias is None
    assert repr(layer) == f"LayerNorm({features}, eps=0.001)"


def test_rms_norm(rng):
    layer = nn.RMSNorm(6).astype("float64")
    fill(layer, rng)
    x = rng.standard_normal((5, 6))
    expected = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6) * f64(layer.weight)
    np.testing.assert_allclose(train(layer, x), expected, rtol=1e-10, atol=1e-12)


def test_group_norm(rng):
    layer = nn.GroupNorm(2, 4).astype("float64")
    fill(layer, rng)
    x = rng.standard_normal((3, 4, 5, 2))
    z = normalise(x.reshape(3, 2, 2, 5, 2), (2, 3, 4), 1e-5).reshape(x.shape)
    expected = z * f64(layer.weight).reshape(4, 1, 1) + f64(layer.bias).reshape(4, 1, 1)
    np.testing.assert_allclose(train(layer, x), expected, rtol=1e-10, atol=1e-12)


def test_batch_norm_trains_and_evaluates(rng):
    layer = nn.BatchNorm2d(4, momentum=0.25).astype("float64")
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    fill(layer, rng)
    mean, var = np.zeros(4), np.ones(4)
    for step in range(1, 4):
        x = rng.standard_normal((3, 4, 5, 2)) * 2 + 1
        y = train(layer, x)
        expected = normalise(x, (0, 2, 3), 1e-5) * f64(layer.weight).reshape(4, 1, 1) + f64(layer.bias).reshape(4, 1, 1)
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
        mean = 0.75 * mean + 0.25 * x.mean((0, 2, 3))
        var = 0.75 * var + 0.25 * x.var((0, 2, 3), ddof=1)
        assert layer.num_batches_tracked.item() == step
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-12)
    layer.eval()
    scale = f64(layer.weight) / np.sqrt(var + 1e-5)
    expected = (x - mean.reshape(4, 1, 1)) * scale.reshape(4, 1, 1) + f64(layer.bias).reshape(4, 1, 1)
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-10, atol=1e-12)
    assert layer.num_batches_tracked.item() == 3
    other = nn.BatchNorm2d(4).eval()
    other.load_state_dict(layer.state_dict())
    assert other.num_batches_tracked.item() == 3
    np.testing.assert_allclose(other(x.astype(np.float32)).detach(), expected, rtol=1e-4, atol=1e-4)


# ---- tables


def test_embedding(rng):
    layer = nn.Embedding(10, 4, padding_idx=-1)
    assert not f64(layer.weight)[9].any()
    assert f64(layer.weight)[:9].all()
    indices = np.array([[1, 9, 1], [0, 3, 2]])
    y = train(layer, indices)
    np.testing.assert_array_equal(y, f64(layer.weight)[indices])
    counts = np.bincount(indices.ravel(), minlength=10)
    counts[9] = 0
    np.testing.assert_array_equal(layer.weight.grad, np.repeat(counts[:, None], 4, 1))
    for bad in (10, -11):
        with pytest.raises(ValueError, match=rf"\[Embedding\] padding_idx is {bad}"):
            nn.Embedding(10, 4, padding_idx=bad)
    with pytest.raises(IndexError):
        layer(np.array([10]))


def test_sparse_embedding(rng):
    layer = nn.Embedding(1000, 4, sparse=True).astype("float64")
    y = layer(np.array([7, 3, 7]))
    y.backward(np.ones((3, 4)))
    grad = layer.weight.grad
    assert isinstance(grad, drupe.SparseRows)
    assert drupe.Tensor(grad.indices).tolist() == [3, 7]
    assert drupe.Tensor(grad.values).tolist() == [[1] * 4, [2] * 4]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bag(rng, mode):
    layer = nn.EmbeddingBag(10, 4, mode=mode)
    indices, offsets = np.array([1, 2, 4, 5, 4]), np.array([0, 2])
    y = train(layer, indices, offsets)
    rows = f64(layer.weight)[indices]
    expected = [getattr(part, mode)(0) for part in (rows[:2], rows[2:])]
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    table = np.array([[1, 2], [4, 4]])
    np.testing.assert_allclose(f64(layer(table)), getattr(f64(layer.weight)[table], mode)(1), rtol=1e-12)
    with pytest.raises(ValueError, match=r'\[EmbeddingBag\] mode is "median"'):
        nn.EmbeddingBag(10, 4, mode="median")


def test_weighted_bags(rng):
    layer = nn.EmbeddingBag(10, 4, mode="sum").astype("float64")
    weights = rng.standard_normal(3)
    y = layer(np.array([1, 2, 3]), np.array([0]), per_sample_weights=weights)
    np.testing.assert_allclose(f64(y), (weights @ f64(layer.weight)[1:4])[None], rtol=1e-12)


# ---- dropout


def test_dropout():
    layer = nn.Dropout(0.25)
    x = np.ones((200, 200), np.float32)
    y = np.asarray(layer(x))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert (np.asarray(layer(x)) != y).any()
    assert layer.eval()(x) is x
    assert repr(layer) == "Dropout(p=0.25)"
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"\[Dropout\] p is {bad}"):
            nn.Dropout(bad)


# ---- attention


def split(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def reference_attention(layer, query, key, value, hidden=None):
    def project(x, linear):
        return x @ f64(linear.weight).T + (0 if linear.bias is None else f64(linear.bias))

    q = split(project(query, layer.q_proj), layer.heads)
    k, v = (split(project(x, m), layer.kv_heads) for x, m in ((key, layer.k_proj), (value, layer.v_proj)))
    k, v = (np.repeat(x, layer.heads // layer.kv_heads, 1) for x in (k, v))
    logits = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
    if hidden is not None:
        logits = np.where(hidden, -np.inf, logits)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    y = weights / weights.sum(-1, keepdims=True) @ v
    return project(y.transpose(0, 2, 1, 3).reshape(query.shape), layer.out_proj)


def test_self_attention(rng):
    layer = nn.MultiHeadAttention(12, 3)
    names = [f"{m}.{p}" for m in ("q_proj", "k_proj", "v_proj", "out_proj") for p in ("weight", "bias")]
    assert list(layer.state_dict()) == names
    x = rng.standard_normal((2, 5, 12))
    y = train(layer, x)
    np.testing.assert_allclose(y, reference_attention(layer, x, x, x), rtol=1e-10, atol=1e-12)


def test_causal_grouped_attention(rng):
    layer = nn.MultiHeadAttention(16, 4, kv_heads=2, causal=True, bias=False)
    assert layer.k_proj.weight.shape == (8, 16)
    x = rng.standard_normal((2, 5, 16))
    y = train(layer, x)
    hidden = np.triu(np.ones((5, 5), bool), 1)
    np.testing.assert_allclose(y, reference_attention(layer, x, x, x, hidden), rtol=1e-10, atol=1e-12)
    assert "heads=4, kv_heads=2, causal" in repr(layer)


def test_cross_attention_with_lengths(rng):
    layer = nn.MultiHeadAttention(8, 2, kv_features=6)
    query, key = rng.standard_normal((2, 3, 8)), rng.standard_normal((2, 7, 6))
    lengths = np.array([4, 7])
    y = train(layer, query, key, lengths=lengths)
    hidden = np.arange(7) >= lengths[:, None, None, None]
    np.testing.assert_allclose(y, reference_attention(layer, query, key, key, hidden), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("heads", "kv_heads"), [(5, None), (0, None), (4, 3), (4, 0)])
def test_heads_that_do_not_divide(heads, kv_heads):
    with pytest.raises(ValueError, match=r"\[MultiHeadAttention\].*do not divide"):
        nn.MultiHeadAttention(16, heads, kv_heads=kv_heads)


# ---- shapes


def test_flatten(rng):
    x = drupe.tensor(rng.standard_normal((2, 3, 4)))
    assert nn.Flatten()(x).shape == (2, 12)
    assert nn.Flatten(0)(x).shape == (24,)
    assert nn.Flatten()(drupe.zeros((0, 3, 4))).shape == (0, 12)
