from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import drupe
from drupe import SparseRows, ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

MODES = ("sum", "mean", "max")


def draw(rng, shape, name):
    return rng.standard_normal(shape).astype(dtype(name))


def bags_of(indices, offsets):
    if offsets is None:
        return (
            list(range(0, indices.size + 1, max(1, indices.shape[1]))) if indices.shape[1] else [0] * (len(indices) + 1)
        )
    return [*offsets, indices.size]


def reference(weight, indices, offsets=None, mode="sum", scale=None, padding=None, dy=None):
    """The result, or the gradient of the table and the factors where dy is given; in float64."""
    weight, flat = f64(weight), np.asarray(indices).reshape(-1)
    factors = np.ones(flat.size) if scale is None else f64(scale).reshape(-1)
    bounds = bags_of(np.asarray(indices), offsets)
    y = np.zeros((len(bounds) - 1, weight.shape[1]))
    dweight, dfactors = np.zeros_like(weight), np.zeros(flat.size)
    for b, (begin, end) in enumerate(pairwise(bounds)):
        kept = [i for i in range(begin, end) if padding is None or flat[i] != padding % len(weight)]
        if not kept:
            continue
        rows = weight[flat[kept]] * factors[kept][:, None]
        y[b] = {"sum": rows.sum(0), "mean": rows.mean(0), "max": rows.max(0)}[mode]
        if dy is None:
            continue
        for place, i in enumerate(kept):
            dfactors[i] = weight[flat[i]] @ f64(dy[b])
            if mode == "max":
                dweight[flat[i]] += np.where(rows.argmax(0) == place, f64(dy[b]), 0)
            else:
                dweight[flat[i]] += factors[i] * f64(dy[b]) / (len(kept) if mode == "mean" else 1)
    return y if dy is None else (dweight, dfactors)


def backward(weight, indices, offsets, dy, **options):
    leaf = drupe.tensor(weight, requires_grad=True)
    ops.embedding_bag(leaf, indices, offsets, **options).backward(dy)
    return leaf.grad


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [1, 7, 16, 24, 64, 128, 145])
def test_matches_numpy(backend, rng, name, mode, width):
    weight = draw(rng, (60, width), name)
    indices = rng.integers(0, 60, 150)
    offsets = np.array([0, 0, 1, 10, 10, 100, 149, 150])
    for kind in (np.int32, np.int64):
        y = ops.embedding_bag(weight, indices.astype(kind), offsets.astype(kind), mode=mode)
        assert y.dtype == weight.dtype
        assert_close(y, reference(weight, indices, offsets, mode), name, 90, 10)
    square = indices.reshape(15, 10)
    assert_close(ops.embedding_bag(weight, square, mode=mode), reference(weight, square, None, mode), name, 10, 4)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [1, 20, 130])
@pytest.mark.parametrize("padding", [None, 3, -1])
def test_gradients_match_numpy(backend, rng, name, mode, width, padding):
    weight = draw(rng, (12, width), name)
    indices = rng.integers(0, 12, 90)
    indices[40:44] = 3  # a bag of nothing but the padding row
    offsets = np.array([0, 0, 5, 40, 44, 90])
    dy = draw(rng, (6, width), name)
    y = ops.embedding_bag(weight, indices, offsets, mode=mode, padding_idx=padding)
    assert_close(y, reference(weight, indices, offsets, mode, padding=padding), name, 46, 7)
    expected, _ = reference(weight, indices, offsets, mode, padding=padding, dy=dy)
    dense = backward(weight, indices, offsets, dy, mode=mode, padding_idx=padding)
    assert_close(dense.numpy(), expected, name, 20, 5)
    sparse = backward(weight, indices, offsets, dy, mode=mode, padding_idx=padding, sparse=True)
    assert isinstance(sparse, SparseRows)
    named = np.unique(indices)
    named = named if padding is None else named[named != padding % 12]
    np.testing.assert_array_equal(drupe.Tensor(sparse.indices).numpy(), named)
    np.testing.assert_array_equal(sparse.to_dense().numpy(), dense.numpy())


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("flat", [True, False])
def test_per_sample_weights(backend, rng, name, flat):
    weight = draw(rng, (9, 33), name)
    indices = rng.integers(0, 9, (5, 8))
    scale, dy = draw(rng, (5, 8), name), draw(rng, (5, 33), name)
    offsets = None
    if flat:
        indices, scale, offsets = indices.reshape(-1), scale.reshape(-1), np.arange(5) * 8
    w, s = drupe.tensor(weight, requires_grad=True), drupe.tensor(scale, requires_grad=True)
    y = ops.embedding_bag(w, indices, offsets, per_sample_weights=s, padding_idx=2)
    assert_close(y.detach().numpy(), reference(weight, indices, offsets, scale=scale, padding=2), name, 8, 4)
    y.backward(dy)
    dweight, dscale = reference(weight, indices, offsets, scale=scale, padding=2, dy=dy)
    assert_close(w.grad.numpy(), dweight, name, 8, 5)
    assert_close(s.grad.numpy(), dscale.reshape(scale.shape), name, 33, 10)
    sparse = backward(weight, indices, offsets, dy, per_sample_weights=scale, padding_idx=2, sparse=True)
    np.testing.assert_array_equal(sparse.to_dense().numpy(), w.grad.numpy())


@pytest.mark.parametrize("mode", MODES)
def test_finite_differences(device, rng, mode):
    indices, offsets = rng.integers(0, 6, 11), np.array([0, 4, 4, 9])
    check_gradients(
        lambda w, i, o: ops.embedding_bag(w, i, o, mode=mode), rng.standard_normal((6, 3)), indices, offsets, rng=rng
    )
    if mode == "sum":
        check_gradients(
            lambda w, i, o, s: ops.embedding_bag(w, i, o, per_sample_weights=s),
            rng.standard_normal((6, 3)),
            indices,
            offsets,
            rng.standard_normal(11),
            rng=rng,
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("indices", "offsets"),
    [((0,), (0,)), ((0,), (3,)), ((0, 4), None), ((3, 0), None), ((0, 0), None)],
    ids=str,
)
def test_empty_bags_give_zeros(backend, mode, indices, offsets):
    weight = np.full((4, 5), np.nan)
    starts = None if offsets is None else np.zeros(offsets, np.int64)
    count = indices[0] if offsets is None else offsets[0]
    leaf = drupe.tensor(weight, requires_grad=True)
    y = ops.embedding_bag(leaf, np.zeros(indices, np.int64), starts, mode=mode)
    np.testing.assert_array_equal(y.detach().numpy(), np.zeros((count, 5)))
    y.backward(np.ones((count, 5)))
    np.testing.assert_array_equal(leaf.grad.numpy(), np.zeros((4, 5)))


def test_maximum_of_equals_infinities_and_nan(backend):
    weight = np.array([[1.0, -np.inf, np.nan], [1.0, -np.inf, 5.0], [0.0, -np.inf, np.nan]])
    leaf = drupe.tensor(weight, requires_grad=True)
    y = ops.embedding_bag(leaf, np.array([[1, 0, 2]]), mode="max")
    np.testing.assert_array_equal(y.detach().numpy(), [[1.0, -np.inf, np.nan]])
    y.backward(np.array([[1.0, 2.0, 4.0]]))
    np.testing.assert_array_equal(leaf.grad.numpy(), [[0, 0, 4], [1, 2, 0], [0, 0, 0]])


def test_strided_operands(backend, rng):
    table = rng.standard_normal((40, 24)).astype(np.float32)
    indices = rng.integers(0, 20, (12, 10))[::2, ::-1]
    for weight in (table[::2], table[:20, 1:], table[:20, 1:9], table[:20, ::2], table.T[:20]):
        for mode in MODES:
            y = ops.embedding_bag(weight, indices, mode=mode)
            assert_close(y, reference(weight, indices, mode=mode), "float32", 10, 4)
    for view in np.s_[::2], np.s_[:20, 1:], np.s_[:20, 4:12], np.s_[:20, ::2]:  # which stay views on a GPU
        y = ops.embedding_bag(drupe.tensor(table)[view], indices, mode="mean")
        assert_close(y.numpy(), reference(table[view], indices, mode="mean"), "float32", 10, 4)
    dy = rng.standard_normal((24, 6)).astype(np.float32).T
    grad = backward(table[:20], indices, None, dy)
    assert_close(grad.numpy(), reference(table[:20], indices, dy=dy)[0], "float32", 10, 4)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_bags(data):
    rows, width = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 40))
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    mode = data.draw(st.sampled_from(MODES))
    padding = data.draw(st.none() | st.integers(-rows, rows - 1))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    indices = generator.integers(0, rows, sum(lengths))
    offsets = np.cumsum([0, *lengths[:-1]])
    weight = generator.standard_normal((rows, width))
    dy = generator.standard_normal((len(lengths), width))
    leaf = drupe.tensor(weight, requires_grad=True)
    y = ops.embedding_bag(leaf, indices, offsets, mode=mode, padding_idx=padding)
    np.testing.assert_allclose(
        y.detach().numpy(), reference(weight, indices, offsets, mode, padding=padding), atol=1e-12
    )
    y.backward(dy)
    expected, _ = reference(weight, indices, offsets, mode, padding=padding, dy=dy)
    np.testing.assert_allclose(leaf.grad.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_same_bits_on_any_number_of_threads(backend, rng, mode):
    weight = draw(rng, (3000, 16), "float32")
    indices = np.minimum(rng.integers(0, 3000, (4000, 10)), rng.integers(0, 3000, (4000, 10)))
    dy = draw(rng, (4000, 16), "float32")
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        leaf = drupe.tensor(weight, requires_grad=True)
        y = ops.embedding_bag(leaf, indices, mode=mode)
        y.backward(dy)
        results.append((y.detach().numpy().copy(), leaf.grad.numpy().copy()))
    drupe.set_num_threads(before)
    for y, grad in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(grad, results[0][1])


@pytest.mark.parametrize("bad", [-1, 5, 2**40, -(2**63)])
@pytest.mark.parametrize("at", [0, 4500, 8999])
@pytest.mark.parametrize("mode", MODES)
def test_bad_indices_and_offsets_are_found_wherever_they_are(backend, mode, bad, at):
    weight, zeros, ascending = np.ones((5, 2)), np.zeros(9000, np.int64), np.arange(9000)
    indices = zeros.copy()
    indices[at] = bad
    with pytest.raises(IndexError, match=rf"\[embedding_bag\] indices\[{at}\] is {bad}: the table has 5 rows"):
        ops.embedding_bag(weight, indices, ascending, mode=mode)
    with pytest.raises(IndexError, match=rf"indices\[{at // 2}, {at % 2}\] is {bad}"):
        ops.embedding_bag(weight, indices.reshape(-1, 2), mode=mode)
    offsets = ascending.copy()
    offsets[at] = bad if bad != 5 else 9001
    with pytest.raises(ValueError, match=r"offsets\[\d+\] is -?\d+"):
        ops.embedding_bag(weight, zeros, offsets, mode=mode)


W = np.ones((5, 2))
I6 = np.zeros(6, np.int64)


@pytest.mark.parametrize(
    ("weight", "indices", "offsets", "options", "error", "message"),
    [
        (W, I6 + 5, np.array([0]), {}, IndexError, r"\[embedding_bag\] indices\[0\] is 5: the table has 5 rows"),
        (W, I6.reshape(2, 3) - 1, None, {}, IndexError, r"indices\[0, 0\] is -1"),
        (W, I6, None, {}, ValueError, r"indices is \(6,\): expected \(B, L\), or \(N,\) and offsets"),
        (W, I6.reshape(2, 3), np.array([0]), {}, ValueError, r"indices is \(2, 3\): expected \(N,\) beside offsets"),
        (W, I6, np.array([1, 3]), {}, ValueError, r"offsets\[0\] is 1: expected 0"),
        (W, I6, np.array([0, 3, 2]), {}, ValueError, r"offsets\[2\] is 2 after 3: expected no decrease"),
        (W, I6, np.array([0, 7]), {}, ValueError, r"offsets\[1\] is 7: there are only 6 indices"),
        (W, I6, np.array([], np.int64), {}, ValueError, r"offsets is empty, but there are 6 indices"),
        (W, I6, np.array([[0]]), {}, ValueError, r"offsets is \(1, 1\): expected 1 dimension"),
        (W, I6, np.array([0.0]), {}, TypeError, r"offsets is float64"),
        (W, I6.astype(np.uint8), np.array([0]), {}, TypeError, r"indices is uint8"),
        (W.astype(int), I6, np.array([0]), {}, TypeError, r"weight is int64: expected a float dtype"),
        (np.ones(5), I6, np.array([0]), {}, ValueError, r"weight is \(5,\): expected 2"),
        (W, I6, np.array([0]), {"mode": "min"}, ValueError, r'mode is "min": expected sum, mean or max'),
        (W, I6, np.array([0]), {"padding_idx": 9}, IndexError, r"padding_idx is 9"),
        (W, I6, np.array([0]), {"per_sample_weights": np.ones(5)}, ValueError, r"per_sample_weights is \(5,\)"),
        (W, I6, np.array([0]), {"per_sample_weights": np.ones(6, "f")}, TypeError, "is float32: expected float64"),
        (W, I6, np.array([0]), {"per_sample_weights": np.ones(6), "mode": "mean"}, ValueError, "need mode sum"),
    ],
)
def test_errors_name_what_is_wrong(device, weight, indices, offsets, options, error, message):
    with pytest.raises(error, match=message):
        ops.embedding_bag(weight, indices, offsets, **options)
