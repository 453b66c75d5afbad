from __future__ import annotations

import itertools

import numpy as np
import pytest

import drupe
from drupe import _C, ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64


def visible(shape, causal=False, window=None, lengths=None, query_lengths=None):
    """Which key each query sees, as (B, 1, Sq, Skv)."""
    B, Sq, Skv = shape
    position = np.arange(Sq)[:, None] + Skv - Sq
    key = np.arange(Skv)[None, :]
    left, right = (window, window) if isinstance(window, int) else window or (None, None)
    seen = np.ones((B, Sq, Skv), bool)
    if causal:
        seen &= key <= position
    if left is not None:
        seen &= key >= position - left
    if right is not None:
        seen &= key <= position + right
    if lengths is not None:
        seen &= key < np.asarray(lengths)[:, None, None]
    if query_lengths is not None:
        seen &= np.arange(Sq)[:, None] < np.asarray(query_lengths)[:, None, None]
    return seen[:, None]


def reference(q, k, v, *, bias=None, scale=None, **masks):
    """Return attention, and its gradients as a function of dy, in float64 with every matrix written out."""
    q, k, v = f64(q), f64(k), f64(v)
    B, Hq, Sq, D = q.shape
    Hkv, Skv = k.shape[1:3]
    group = Hq // Hkv
    scale = 1 / np.sqrt(D) if scale is None else scale
    kk, vv = np.repeat(k, group, 1), np.repeat(v, group, 1)
    logits = scale * (q @ kk.swapaxes(-1, -2))
    if bias is not None:
        logits = logits + f64(bias)
    logits = np.where(visible((B, Sq, Skv), **masks), logits, -np.inf)
    top = logits.max(-1, keepdims=True, initial=-np.inf)
    p = np.exp(logits - np.where(np.isneginf(top), 0, top))
    total = p.sum(-1, keepdims=True)
    p = p / np.where(total == 0, 1, total)
    y = p @ vv

    def backward(dy):
        dy = f64(dy)
        ds = p * (dy @ vv.swapaxes(-1, -2) - (dy * y).sum(-1, keepdims=True))
        shared = lambda x: x.reshape(B, Hkv, group, Skv, -1).sum(2)  # noqa: E731
        dbias = None
        if bias is not None:
            dbias = ds.sum(tuple(range(4 - np.ndim(bias))))
            axes = tuple(i for i, n in enumerate(np.shape(bias)) if n == 1)
            dbias = dbias.sum(axes, keepdims=True).reshape(np.shape(bias))
        dk, dv = shared(ds.swapaxes(-1, -2) @ q), shared(p.swapaxes(-1, -2) @ dy)
        return scale * (ds @ kk), scale * dk, dv, dbias

    return y, backward


def draw(rng, shape, name="float64"):
    return rng.standard_normal(shape).astype(dtype(name))


def compare(q, k, v, name, *, bias=None, dy=None, rng, **options):
    """Check the output and all gradients against the reference."""
    leaves = [drupe.tensor(x, requires_grad=True) for x in (q, k, v)]
    bias_leaf = None if bias is None else drupe.tensor(bias, requires_grad=True)
    y = ops.attention(*leaves, bias=bias_leaf, **options)
    expected, backward = reference(q, k, v, bias=bias, **options)
    assert_close(y.detach().numpy(), expected, name, 8)
    dy = draw(rng, y.shape, name) if dy is None else dy
    y.backward(dy)
    gradients = backward(dy)
    length = max(q.shape[2] * q.shape[1] // max(1, k.shape[1]), k.shape[2], 1)
    for leaf, gradient in zip([*leaves, bias_leaf], gradients, strict=True):
        if leaf is not None:
            assert leaf.grad.dtype == dtype(name)
            # The 16-bit formats compute delta from an output that is already rounded.
            terms = 1 if leaf is not bias_leaf else gradients[0].size // max(1, leaf.size)
            assert_close(leaf.grad.numpy(), gradient, name, length, 4 * np.sqrt(max(1, terms)))
    return y


def operands(rng, B, Hq, Hkv, Sq, Skv, D, Dv, name="float64"):
    return draw(rng, (B, Hq, Sq, D), name), draw(rng, (B, Hkv, Skv, D), name), draw(rng, (B, Hkv, Skv, Dv), name)


# Tiny; the register tile of every ISA and one beyond; D and Dv that differ, and that fill no vector; D beyond a slice
# of the left operand; one block of queries and one beyond; one block of keys and one beyond; keys of one head in
# several tasks; many heads, which pack for themselves.
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 2, 2, 3, 5, 7, 4),
    (1, 2, 1, 14, 32, 64, 64),
    (1, 1, 1, 15, 33, 65, 31),
    (1, 1, 1, 5, 4, 300, 270),
    (1, 2, 2, 129, 128, 16, 8),
    (1, 4, 2, 20, 257, 8, 40),
    (1, 1, 1, 150, 130, 5, 33),
    (2, 6, 2, 1, 70, 24, 24),
    (40, 1, 1, 3, 9, 4, 4),
    (1, 2, 1, 70, 1100, 8, 8),
    (17, 4, 2, 30, 300, 8, 32),
]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_numpy(backend, rng, name, shape):
    if backend == "cuda":
        shape = (min(shape[0], 3), *shape[1:])  # what many heads change is the CPU's business
    compare(*operands(rng, *shape, name), name, rng=rng)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("width", "sizes", "options"),
    [
        ((8, 32), (130, 70), {"causal": True}),
        ((56, 64), (20, 140), {"causal": True, "scale": -0.3}),
        ((96, 88), (70, 66), {"window": (20, 10)}),
        ((128, 128), (66, 130), {"causal": True, "window": 40}),
        ((129, 128), (18, 35), {}),
        ((256, 200), (70, 67), {"causal": True}),
        ((264, 16), (9, 70), {}),
    ],
    ids=str,
)
def test_16_bit_formats_of_every_width(backend, rng, name, width, sizes, options):
    arrays = operands(rng, 2, 2, 1, *sizes, *width, name)
    lengths, query_lengths = np.array([sizes[1], sizes[1] // 2 + 1]), np.array([sizes[0] - 1, sizes[0]])
    for bias in (None, draw(rng, (2, 1, sizes[1]), name)):
        compare(*arrays, name, bias=bias, lengths=lengths, query_lengths=query_lengths, rng=rng, **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 0, 3, (5, None), (None, 2), (40, 20)], ids=str)
@pytest.mark.parametrize("masked", [(), ("lengths",), ("query_lengths",), ("lengths", "query_lengths")], ids=str)
@pytest.mark.parametrize("sizes", [(9, 9), (4, 50), (50, 4), (140, 150)], ids=str)
def test_masks(backend, rng, causal, window, masked, sizes):
    Sq, Skv = sizes if backend != "cuda" else (min(n, 75 + n % 20) for n in sizes)
    q, k, v = operands(rng, 3, 4, 2, Sq, Skv, 6, 5)
    options = {"causal": causal, "window": window}
    if "lengths" in masked:
        options["lengths"] = np.array([0, Skv // 2, Skv], np.int32)
    if "query_lengths" in masked:
        options["query_lengths"] = np.array([Sq, Sq // 3, 0])
    for bias in (None, draw(rng, (1, 4, Sq, Skv))):
        compare(q, k, v, "float64", bias=bias, rng=rng, **options)


# Heads as wide as panels, which one product may write where they belong: keys and queries that nobody sees, tiles that
# reach into the next head, a bias, and more heads than pack together.
@pytest.mark.parametrize("name", ["float64", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"window": (5, 3)},
        {"window": 3, "lengths": np.array([0, 20, 40]), "query_lengths": np.array([9, 0, 40])},
        {"causal": True, "lengths": np.array([33, 40, 1]), "query_lengths": np.array([40, 40, 17])},
    ],
    ids=lambda options: ",".join(options) or "full",
)
@pytest.mark.parametrize(("heads", "sizes"), [((2, 2), (40, 40)), ((6, 2), (40, 128)), ((12, 12), (128, 40))], ids=str)
def test_heads_of_whole_panels(backend, rng, name, options, heads, sizes):
    arrays = operands(rng, 3, *heads, *sizes, 32, 64, name)
    for bias in (None, draw(rng, (1, heads[0], *sizes), name)):
        compare(*arrays, name, bias=bias, rng=rng, **options)


def test_gradients_lie_as_their_operands(backend, rng):
    by_heads = drupe.tensor(draw(rng, (2, 3, 10, 8), "float32"))
    by_rows = drupe.tensor(draw(rng, (2, 10, 3, 8), "float32")).permute(0, 2, 1, 3)
    for tensors in itertools.product([by_heads, by_rows], repeat=3):
        q, k, v = (x.raw for x in tensors)
        y, lse = _C.attention(q, k, v)
        grads = _C.attention_backward(y, y, lse, q, k, v, *[None] * 6, [True, True, True, False])
        for operand, grad in zip((q, k, v), grads, strict=False):
            assert grad.is_contiguous() == operand.is_contiguous()


# Tiles that are whole but for one pair of a query and a key, of 32 to 128 queries and of 32 or 64 keys: the last key of
# the first query, the first key of the last one, the last key of all, the last query.
@pytest.mark.parametrize("name", ["float64", "float32", "float16"])
@pytest.mark.parametrize(
    ("Skv", "options"),
    [
        (190, {"causal": True}),
        (128, {"window": (126, None)}),
        (128, {"lengths": np.array([127])}),
        (128, {"query_lengths": np.array([127])}),
    ],
    ids=str,
)
def test_tiles_that_are_masked_in_a_corner(backend, rng, name, Skv, options):
    compare(*operands(rng, 1, 1, 1, 128, Skv, 8, 8, name), name, rng=rng, **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extents", list(itertools.product([1, 0], repeat=4)), ids=str)
def test_bias_of_any_broadcast_shape(backend, rng, causal, extents):
    full = (2, 4, 19, 37)
    shape = tuple(n if keep else 1 for n, keep in zip(full, extents, strict=True))
    q, k, v = operands(rng, 2, 4, 2, 19, 37, 8, 8)
    compare(q, k, v, "float64", bias=draw(rng, shape), causal=causal, rng=rng)


@pytest.mark.parametrize("shape", [(), (37,), (19, 1), (4, 1, 37), (1, 1, 130, 140), (130, 140)], ids=str)
def test_bias_of_few_dimensions_and_several_blocks(backend, rng, shape):
    Sq, Skv = (130, 140) if 140 in shape else (19, 37)
    q, k, v = operands(rng, 2, 4, 2, Sq, Skv, 8, 8)
    compare(q, k, v, "float64", bias=draw(rng, shape), rng=rng)


@pytest.mark.parametrize("name", FLOATS)
def test_strided_bias(backend, rng, name):
    q, k, v = operands(rng, 2, 2, 2, 18, 21, 8, 8, name)
    whole = draw(rng, (2, 2, 42, 18), name)
    for bias in (whole[:, :, ::2].swapaxes(-1, -2), whole[:, :, :18, ::-1][:, :, :, :1], whole[0, 0, :21, 0][None]):
        y = ops.attention(q, k, v, bias=bias)
        assert_close(y, reference(q, k, v, bias=bias)[0], name, 8)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("D", [8, 32])
def test_views_of_a_fused_projection(backend, rng, name, D):
    B, S, H = 2, 17, 3
    qkv = draw(rng, (B, S, 3, H, D), name)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    y = ops.attention(q, k, v, causal=True)
    assert_close(y, reference(q, k, v, causal=True)[0], name, 8)
    if backend != "cuda":  # from where the copy to NumPy has a layout of its own
        assert y.transpose(0, 2, 1, 3).flags.c_contiguous
    compare(q, k, v, name, causal=True, dy=draw(rng, (B, S, H, D), name).transpose(0, 2, 1, 3), rng=rng)


def test_any_strides_misaligned_and_read_only(backend, rng):
    q, k, v = (draw(rng, (2, 20, 3, 22), "float32")[:, ::-2, :, ::2].swapaxes(1, 2) for _ in range(3))
    buffer = np.zeros(v.size * 4 + 1, np.uint8)
    shifted = buffer[1:].view(np.float32).reshape(v.shape)
    shifted[...] = v
    shifted.flags.writeable = False
    compare(q, k, shifted, "float32", rng=rng)
    dy = np.broadcast_to(np.float32(0.5), v.shape)
    compare(q, k, v, "float32", dy=dy, rng=rng)


@pytest.mark.parametrize("width", [40, 41])
def test_rows_that_begin_between_pairs(backend, rng, width):
    q, k, v = (draw(rng, (1, 2, 20, width), "bfloat16")[..., 1:37] for _ in range(3))
    compare(q, k, v, "bfloat16", rng=rng)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((0, 2, 2, 3, 4, 5, 6), (0, 2, 3, 6)),
        ((2, 0, 0, 3, 4, 5, 6), (2, 0, 3, 6)),
        ((2, 0, 2, 3, 4, 5, 6), (2, 0, 3, 6)),
        ((2, 2, 2, 0, 4, 5, 6), (2, 2, 0, 6)),
        ((2, 2, 2, 3, 0, 5, 6), (2, 2, 3, 6)),
        ((2, 2, 2, 3, 4, 5, 0), (2, 2, 3, 0)),
    ],
    ids=str,
)
def test_empty(backend, rng, shape, expected):
    q, k, v = (drupe.tensor(x, requires_grad=True) for x in operands(rng, *shape))
    bias = drupe.tensor(np.zeros((shape[3], shape[4])), requires_grad=True)
    y = ops.attention(q, k, v, bias=bias)
    assert y.shape == expected
    np.testing.assert_array_equal(y.detach().numpy(), np.zeros(expected))
    y.backward(np.ones(expected))
    for x in (q, k, v, bias):
        assert x.grad.shape == x.shape
        np.testing.assert_array_equal(x.grad.numpy(), np.zeros(x.shape))


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("group", [1, 5])
@pytest.mark.parametrize("length", [1, 31, 513, 1500])
def test_decode(backend, rng, name, group, length):
    q, k, v = operands(rng, 2, 2 * group, 2, 1, length, 64, 64, name)
    lengths = np.array([length, (length + 1) // 2])
    y = ops.attention(q, k, v, causal=True, lengths=lengths)
    assert_close(y, reference(q, k, v, causal=True, lengths=lengths)[0], name, 8)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8])
def test_few_rows_and_long_keys(backend, rng, name, rows):
    # Whole chunks of keys masked, at the start, at the end, and everywhere; sizes that fill no vector.
    q, k, v = operands(rng, 1, 2, 2, rows, 2500, 21, 37, name)
    bias = draw(rng, (1, 2, rows, 2500), name)
    bias[0, 0, 0, :1100] = -np.inf
    bias[0, 1, 0, 900:] = -np.inf
    bias[0, 1, rows - 1] = -np.inf
    for options in ({}, {"window": (1300, 3)}, {"lengths": np.array([1024])}):
        y = ops.attention(q, k, v, bias=bias, **options)
        assert_close(y, reference(q, k, v, bias=bias, **options)[0], name, 16)


# B, Hq, Hkv, Sq, Skv, D, Dv. On the GPU keys are cut into splits of a multiple of 128, and queries of the heads that
# share keys are rows of tiles of 16 or 64: one split, two, four, and lengths at and around their edges; several tiles.
DECODE = [
    ((1, 1, 1, 1, 128, 64, 64), {}),
    ((1, 2, 2, 2, 511, 16, 24), {"causal": True}),
    ((1, 3, 1, 3, 512, 40, 40), {"window": (200, 0)}),
    ((2, 4, 2, 1, 769, 24, 16), {"lengths": [769, 255]}),
    ((2, 8, 2, 4, 1024, 32, 32), {"causal": True, "lengths": [257, 1024], "query_lengths": [4, 2]}),
    ((1, 6, 2, 16, 1300, 8, 8), {"causal": True, "window": (300, None)}),
    ((3, 5, 1, 7, 300, 100, 90), {"lengths": [0, 129, 300]}),
    ((1, 2, 1, 5, 1100, 200, 130), {"causal": True, "scale": -0.2}),
    ((1, 1, 1, 16, 1025, 250, 256), {"window": (3, 2)}),
    ((1, 2, 1, 1, 600, 280, 300), {}),
]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("sizes", "options"), DECODE, ids=str)
def test_decode_by_splits(backend, rng, name, biased, sizes, options):
    B, Hq, _, Sq, Skv, D, _ = sizes
    q, k, v = operands(rng, *sizes, name)
    spread = max(1, abs(options.get("scale", 0)) * np.sqrt(D))  # of the logits, whose errors grow alike
    bias = draw(rng, (B, Hq, Sq, Skv), name) if biased else None
    if biased:
        bias[..., 130:390] = -np.inf
    options = {key: np.array(x) if key.endswith("lengths") else x for key, x in options.items()}
    y = ops.attention(q, k, v, bias=bias, **options)
    assert_close(y, reference(q, k, v, bias=bias, **options)[0], name, 16, spread)
    np.testing.assert_array_equal(ops.attention(q, k, v, bias=bias, **options), y)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_decode_has_gradients(device, rng, name):
    """What the splits leave as the logarithm of the sum is what the backward pass needs."""
    q, k, v = operands(rng, 1, 4, 2, 3, 520, 8, 8, name)
    compare(q, k, v, name, causal=True, rng=rng)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_decode_of_views_of_a_cache(backend, rng, name):
    """A batch's queries (B, S, H, D), and keys and values that lie in a longer cache."""
    q = draw(rng, (2, 3, 6, 32), name)
    cache = draw(rng, (2, 700, 2, 2, 32), name)
    raw = drupe.tensor(cache)
    k, v = (ops.permute(raw[:, :520, i], (0, 2, 1, 3)) for i in (0, 1))
    y = ops.attention(ops.permute(drupe.tensor(q), (0, 2, 1, 3)), k, v, causal=True)
    kk, vv = (cache[:, :520, i].transpose(0, 2, 1, 3) for i in (0, 1))
    assert_close(y.numpy(), reference(q.transpose(0, 2, 1, 3), kk, vv, causal=True)[0], name, 16)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_extreme_logits(backend, rng, name):
    q, k, v = operands(rng, 1, 2, 2, 20, 300, 4, 4, name)
    bias = rng.choice([-1e4, 0, 1e4], (1, 2, 20, 300)).astype(dtype(name))
    bias[0, 0, :, ::3] = -np.inf
    bias[0, 1, 5] = -np.inf
    bias[0, 1, 7, :299] = -np.inf
    bias[0, 1, 8, 1:] = -np.inf
    leaves = [drupe.tensor(x, requires_grad=True) for x in (q, k, v, bias)]
    y = ops.attention(*leaves[:3], bias=leaves[3])
    expected, backward = reference(q, k, v, bias=bias)
    loose = {"rtol": 5e-3, "atol": 5e-3} if name == "float32" else {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(y.detach().numpy(), expected, **loose)
    np.testing.assert_array_equal(y.detach().numpy()[0, 1, 5], np.zeros(4))
    np.testing.assert_array_equal(y.detach().numpy()[0, 1, 7], v[0, 1, 299])
    dy = draw(rng, y.shape, name)
    y.backward(dy)
    for leaf, gradient in zip(leaves, backward(dy), strict=True):
        np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=loose["rtol"], atol=10 * loose["atol"])
    np.testing.assert_array_equal(leaves[0].grad.numpy()[0, 1, 5], np.zeros(4))


def test_masked_rows_and_padding_are_exact_zeros(backend, rng):
    q, k, v = operands(rng, 2, 2, 2, 40, 30, 8, 8, "float32")
    leaves = [drupe.tensor(x, requires_grad=True) for x in (q, k, v)]
    y = ops.attention(*leaves, causal=True, lengths=np.array([12, 0]), query_lengths=np.array([25, 40]))
    y.backward(np.ones(y.shape, np.float32))
    out = y.detach().numpy()
    assert np.abs(out[0, :, 10:25]).min() > 0
    for part in (out[0, :, :10], out[0, :, 25:], out[1], leaves[0].grad.numpy()[0, :, :10]):
        np.testing.assert_array_equal(part, np.zeros(part.shape))
    for leaf in leaves[1:]:
        np.testing.assert_array_equal(leaf.grad.numpy()[0, :, 12:], np.zeros((2, 18, 8)))
        np.testing.assert_array_equal(leaf.grad.numpy()[1], np.zeros((2, 30, 8)))


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_padding_is_never_read(backend, rng, name):
    q, k, v = operands(rng, 1, 1, 1, 50, 70, 8, 8, name)
    k[:, :, 33:] = np.nan
    v[:, :, 33:] = np.nan
    q[:, :, 21:] = np.nan
    leaves = [drupe.tensor(x, requires_grad=True) for x in (q, k, v)]
    y = ops.attention(*leaves, lengths=np.array([33]), query_lengths=np.array([21]))
    y.backward(np.ones(y.shape, dtype(name)))
    for x in (y.detach(), *(leaf.grad for leaf in leaves)):
        assert np.isfinite(f64(x.numpy())).all()


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("Sq", "Skv", "options"),
    [
        (50, 50, {"causal": True, "query_lengths": [21]}),
        (20, 32, {"window": (3, 0)}),
        (25, 24, {"causal": True}),
        (24, 24, {"window": (2, 0), "lengths": [13]}),
        (300, 20, {"window": (1, 2), "lengths": [7]}),
        (20, 700, {"window": (4, 0)}),
    ],
    ids=str,
)
def test_what_nobody_sees_is_never_read(isa, rng, name, Sq, Skv, options):
    left, right = options.get("window", (None, 0))
    place, keys = np.arange(Sq)[:, None] + Skv - Sq, np.arange(Skv)
    sees = (keys <= place + right) & (keys < options.get("lengths", [Skv])[0])
    if left is not None:
        sees &= keys >= place - left
    sees[options.get("query_lengths", [Sq])[0] :] = False
    q, k, v = operands(rng, 1, 1, 1, Sq, Skv, 8, 8, name)
    q[:, :, ~sees.any(1)] = k[:, :, ~sees.any(0)] = v[:, :, ~sees.any(0)] = np.nan
    leaves = [drupe.tensor(x, requires_grad=True) for x in (q, k, v)]
    y = ops.attention(*leaves, **{key: np.array(x) if "len" in key else x for key, x in options.items()})
    dy = np.ones(y.shape, dtype(name))
    dy[:, :, ~sees.any(1)] = np.nan
    y.backward(dy)
    for x in (y.detach(), *(leaf.grad for leaf in leaves)):
        assert np.isfinite(f64(x.numpy())).all()


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_nan_stays_in_its_row(backend, rng, name):
    q, k, v = operands(rng, 1, 1, 1, 20, 40, 8, 8, name)
    q[0, 0, 3, 2] = np.nan
    y = ops.attention(q, k, v)
    assert np.isnan(f64(y[0, 0, 3])).all()
    assert np.isfinite(f64(np.delete(y, 3, axis=2))).all()


@pytest.mark.parametrize("scale", [0.0, -0.7, 2.5])
def test_scale(backend, rng, scale):
    compare(*operands(rng, 1, 2, 1, 6, 11, 5, 3), "float64", scale=scale, rng=rng)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (2, 1)}, {"scale": 0.3}], ids=str)
@pytest.mark.parametrize("bias", [(1, 4, 5, 7), (2, 1, 1, 7), (5, 1)], ids=str)
def test_gradients(device, rng, options, bias):
    B, H = (2, 2) if device == "cpu" else (1, 1)  # a launch for each element is slow where the GPU is emulated
    bias = tuple(min(n, full) for n, full in zip(bias, (B, 2 * H, 5, 7)[-len(bias) :], strict=True))
    q, k, v = operands(rng, B, 2 * H, H, 5, 7, 3, 2)
    lengths = np.array([7, 5])[-B:]

    def function(q, k, v, bias):
        return ops.attention(q, k, v, bias=bias, lengths=lengths, **options)

    check_gradients(function, q, k, v, draw(rng, bias), rng=rng)


# Widths that differ by whole parts: some blocks of a GPU then sum columns of one of dk and dv alone.
@pytest.mark.parametrize("width", [(3, 3), (140, 8), (8, 140)], ids=str)
def test_only_the_gradients_that_are_wanted(device, rng, width):
    arrays = operands(rng, 1, 4, 2, 4, 5, *width)
    bias = draw(rng, (4, 5))
    dy = draw(rng, (1, 4, 4, width[1]))
    whole = reference(*arrays, bias=bias)[1](dy)
    for wanted in range(4):
        leaves = [drupe.tensor(x, requires_grad=i == wanted) for i, x in enumerate([*arrays, bias])]
        ops.attention(*leaves[:3], bias=leaves[3]).backward(dy)
        for i, leaf in enumerate(leaves):
            if i == wanted:
                np.testing.assert_allclose(leaf.grad.numpy(), whole[i], rtol=1e-10, atol=1e-12)
            else:
                assert leaf.grad is None


@pytest.mark.parametrize("heads", [2, 40])
def test_same_bits_on_any_number_of_threads(backend, rng, heads):
    arrays = operands(rng, 1, heads, heads // 2, 150, 1100 if heads == 2 else 70, 16, 16, "float32")
    bias = draw(rng, (1, 1, 1, arrays[1].shape[2]), "float32")
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaves = [drupe.tensor(x, requires_grad=True) for x in (*arrays, bias)]
        y = ops.attention(*leaves[:3], bias=leaves[3], causal=True)
        y.backward(np.ones(y.shape, np.float32))
        results.append([y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])
    drupe.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_long_sequence_needs_no_matrix(rng):
    S, D = 4096, 16
    leaves = [drupe.tensor(draw(rng, (1, 1, S, D), "float32"), requires_grad=True) for _ in range(3)]
    matrix_bytes = 4 * S * S
    _C.reset_peak_memory()
    before = drupe.memory_stats()["in_use_bytes"]
    y = ops.attention(*leaves, causal=True)
    y.backward(np.ones(y.shape, np.float32))
    assert drupe.memory_stats()["peak_bytes"] - before < matrix_bytes / 4
    rows = [0, 1, 2000, 4095]
    q, k, v = (f64(x.detach().numpy())[0, 0] for x in leaves)
    for i in rows:
        logits = k[: i + 1] @ q[i] / np.sqrt(D)
        p = np.exp(logits - logits.max())
        np.testing.assert_allclose(y.detach().numpy()[0, 0, i], p @ v[: i + 1] / p.sum(), rtol=1e-4, atol=1e-5)


Q, K, V = (1, 4, 5, 8), (1, 2, 7, 8), (1, 2, 7, 6)


@pytest.mark.parametrize(
    ("shapes", "options", "error", "message"),
    [
        ((Q, (1, 3, 7, 8), (1, 3, 7, 6)), {}, ValueError, r"\[attention\] q has 4 heads, k has 3: expected a multiple"),
        ((Q, (1, 0, 7, 8), (1, 0, 7, 6)), {}, ValueError, r"q has 4 heads, k has 0"),
        ((Q, (1, 2, 7, 9), V), {}, ValueError, r"head dimensions 8 and 9 differ"),
        ((Q, K, (1, 2, 6, 6)), {}, ValueError, r"v is \(1, 2, 6, 6\): expected the same heads and keys"),
        ((Q, (2, 2, 7, 8), V), {}, ValueError, r"batch sizes differ"),
        (((4, 5, 8), K, V), {}, ValueError, r"q is \(4, 5, 8\): expected 4 dimensions \(B, Hq, Sq, D\)"),
        ((Q, (2, 7, 8), V), {}, ValueError, r"k is \(2, 7, 8\): expected 4 dimensions"),
        ((Q, K, (2, 7, 6)), {}, ValueError, r"v is \(2, 7, 6\): expected 4 dimensions"),
        (((1, 4, 5, 0), (1, 2, 7, 0), V), {}, ValueError, r"the head dimension must be at least 1"),
        ((Q, K, V), {"bias": np.ones((4, 7))}, ValueError, r"bias is \(4, 7\): does not broadcast to \(1, 4, 5, 7\)"),
        ((Q, K, V), {"bias": np.ones((1, 1, 1, 1, 1))}, ValueError, r"bias is \(1, 1, 1, 1, 1\)"),
        ((Q, K, V), {"bias": np.ones((5, 7), np.float32)}, TypeError, r"q is float64, bias is float32"),
        ((Q, K, V), {"lengths": np.array([8])}, ValueError, r"lengths\[0\] is 8: expected 0 to 7"),
        ((Q, K, V), {"lengths": np.array([-1])}, ValueError, r"lengths\[0\] is -1"),
        ((Q, K, V), {"lengths": np.array([1, 2])}, ValueError, r"lengths is \(2,\): expected \(1,\)"),
        ((Q, K, V), {"lengths": np.array([1.0])}, TypeError, r"lengths is float64: expected int32 or int64"),
        ((Q, K, V), {"query_lengths": np.array([6])}, ValueError, r"query_lengths\[0\] is 6: expected 0 to 5"),
        ((Q, K, V), {"window": -1}, ValueError, r"window's left bound is -1"),
        ((Q, K, V), {"window": (None, -2)}, ValueError, r"window's right bound is -2"),
        ((Q, K, V), {"window": (0, -2), "causal": True}, ValueError, r"window's right bound is -2"),
        ((Q, K, V), {"scale": float("inf")}, ValueError, r"scale is inf: expected a finite number"),
    ],
)
def test_errors_name_what_is_wrong(device, shapes, options, error, message):
    with pytest.raises(error, match=message):
        ops.attention(*(np.ones(s) for s in shapes), **options)


def test_dtype_errors(device):
    q, k, v = np.ones(Q), np.ones(K), np.ones(V)
    with pytest.raises(TypeError, match=r"\[attention\] q is int64"):
        ops.attention(q.astype(int), k.astype(int), v.astype(int))
    with pytest.raises(TypeError, match=r"q is float64, k is float32, v is float64"):
        ops.attention(q, k.astype(np.float32), v)


def test_backward_checks_what_it_is_given(rng):
    q, k, v = (_C.from_numpy(x, "float64") for x in operands(rng, 1, 1, 1, 2, 3, 4, 5))
    y, lse = _C.attention(q, k, v)
    rest = (q, k, v, None, None, None, None, None, None, [True] * 4)
    with pytest.raises(ValueError, match=r"\[attention_backward\] dy is \(1, 1, 2, 4\)"):
        _C.attention_backward(q, y, lse, *rest)
    with pytest.raises(ValueError, match=r"lse is \(1, 1, 2, 5\)"):
        _C.attention_backward(y, y, y, *rest)
    with pytest.raises(TypeError, match=r"lse is float32"):
        _C.attention_backward(y, y, _C.cast(lse, "float32"), *rest)


def test_huge_window_does_not_overflow(backend, rng):
    q, k, v = operands(rng, 1, 1, 1, 4, 6, 3, 3)
    wide = 2**63 - 1
    np.testing.assert_array_equal(ops.attention(q, k, v, window=wide), ops.attention(q, k, v))
