"""The tape: what is recorded, how often, and what refuses to run backwards."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import drupe
from drupe import _C, ops
from drupe.autograd import SparseRows
from drupe.ops._call import Call


def leaf(array, **options):
    return drupe.tensor(np.asarray(array, np.float64), requires_grad=True, **options)


def add(a, b):
    """A rule that gives one gradient to two inputs."""
    call = Call("add", a, b)
    return call.output(_C.binary("add", *call.raw), lambda dy: (dy, dy))


def scale(x, factor):
    """A rule that counts how often it runs."""
    call = Call("scale", x)
    y = _C.binary("mul", call.raw[0], _C.full((), factor, call.raw[0].dtype))

    def backward(dy):
        scale.runs += 1
        return (_C.binary("mul", dy, _C.full((), factor, dy.dtype)),)

    return call.output(y, backward)


scale.runs = 0


def halves(x):
    """Two outputs: the upper and the lower rows."""
    call = Call("halves", x)
    (raw,) = call.raw
    rows = raw.shape[0] // 2

    def backward(upper, lower):
        dx = _C.zeros(raw.shape, raw.dtype)
        for part, at in ((upper, 0), (lower, rows)):
            if part is not None:
                _C.copy_into(dx.slice(0, at, at + rows, 1), part)
        return (dx,)

    return call.outputs((raw.slice(0, 0, rows, 1), raw.slice(0, rows, 2 * rows, 1)), backward)


# ---- what is recorded


def test_only_what_needs_a_gradient_is_recorded():
    x, plain = leaf([1.0, 2.0]), drupe.tensor([3.0, 4.0], "float64")
    assert not ops.tanh(plain).requires_grad
    assert ops.tanh(plain).node is None
    y = add(x, plain)
    assert y.requires_grad
    assert y.node.name == "add"
    y.backward(np.ones(2))
    assert plain.grad is None
    np.testing.assert_array_equal(x.grad, [1, 1])
    with pytest.raises(RuntimeError, match="no input requires a gradient"):
        ops.tanh(plain).backward(np.ones(2))


def test_no_grad():
    x = leaf([1.0])
    with drupe.no_grad():
        assert not drupe.is_grad_enabled()
        assert not ops.tanh(x).requires_grad
        with drupe.enable_grad():
            assert ops.tanh(x).requires_grad
        assert not drupe.is_grad_enabled()
    assert drupe.is_grad_enabled()

    @drupe.no_grad()
    def infer():
        return ops.tanh(x)

    for _ in range(2):
        assert not infer().requires_grad
    with pytest.raises(ZeroDivisionError), drupe.no_grad():
        1 / 0  # noqa: B018
    assert drupe.is_grad_enabled()


def test_backward_works_inside_no_grad():
    x = leaf([0.5])
    y = ops.tanh(x)
    with drupe.no_grad():
        y.backward()
    np.testing.assert_allclose(x.grad, 1 - np.tanh(0.5) ** 2)


def test_detach_cuts():
    x = leaf([1.0, 2.0])
    y = add(x, ops.tanh(x).detach())
    assert np.shares_memory(x.detach().numpy(), x.detach().numpy())
    y.backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [1, 1])


def test_only_leaves_keep_gradients():
    x = leaf([1.0])
    y = scale(x, 2)
    scale(y, 3).backward()
    assert y.grad is None
    assert x.grad.tolist() == [6]


# ---- sums


def test_gradients_accumulate_until_dropped():
    x = leaf([1.0, 2.0])
    for i in range(1, 4):
        scale(x, 2).backward(np.ones(2))
        np.testing.assert_array_equal(x.grad, [2 * i, 2 * i])
    x.grad = None
    scale(x, 2).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [2, 2])


def test_a_tensor_used_twice():
    x = leaf([0.3, -0.4])
    add(ops.tanh(x), x).backward(np.ones(2))
    np.testing.assert_allclose(x.grad, 1 - np.tanh(x.detach().numpy()) ** 2 + 1)
    x.grad = None
    add(x, x).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [2, 2])


def test_a_matrix_times_itself(rng):
    x, dy = leaf(rng.standard_normal((3, 3))), rng.standard_normal((3, 3))
    ops.gemm(x, x).backward(dy)
    a = x.detach().numpy()
    np.testing.assert_allclose(x.grad, dy @ a.T + a.T @ dy, rtol=1e-12)


def test_diamonds_run_each_node_once():
    x = leaf([1.0])
    y = x
    for _ in range(20):  # 2^20 paths
        y = add(scale(y, 1), scale(y, 1))
    scale.runs = 0
    y.backward()
    assert scale.runs == 40
    assert x.grad.tolist() == [2.0**20]


def test_paths_of_different_length():
    x = leaf([2.0])
    near = scale(x, 3)
    far = x
    for _ in range(5):
        far = scale(far, 2)
    add(add(near, far), x).backward()
    assert x.grad.tolist() == [3 + 32 + 1]


def test_several_outputs():
    x = leaf(np.arange(6.0).reshape(6, 1))
    upper, lower = halves(x)
    add(scale(upper, 2), scale(lower, 3)).backward(np.ones((3, 1)))
    assert x.grad.tolist() == [[2]] * 3 + [[3]] * 3
    x.grad = None
    upper, lower = halves(x)
    lower.backward(np.ones((3, 1)))  # nothing flows to the other one
    assert x.grad.tolist() == [[0]] * 3 + [[1]] * 3


def test_a_graph_5000_deep():
    x = leaf([1.0])
    y = x
    for _ in range(5000):
        y = scale(y, 1)
    y.backward()
    assert x.grad.tolist() == [1]
    y = scale(x, 1)
    for _ in range(50_000):
        y = scale(y, 1)
    del y  # nor does dropping one recurse
    gc.collect()


def test_backward_on_a_leaf():
    x = leaf([1.0, 2.0])
    given = np.array([3.0, 4.0])
    x.backward(given)
    x.backward(given)
    np.testing.assert_array_equal(x.grad, [6, 8])
    np.testing.assert_array_equal(given, [3, 4])


# ---- memory


def test_gradients_share_no_memory():
    a, b, c = leaf([[1.0, 2.0]]), leaf([[3.0, 4.0]]), leaf([[5.0, 6.0], [7.0, 8.0]])
    given = np.ones((1, 2))
    add(add(a, b), a).backward(given)
    upper, lower = halves(c)
    add(upper, lower).backward(given)
    grads = [t.grad.numpy() for t in (a, b, c)]
    for i, grad in enumerate([*grads, given]):
        for other in [*grads, given][:i]:
            assert not np.shares_memory(grad, other)
    grads[1][...] = 100
    np.testing.assert_array_equal(grads[0], [[2, 2]])
    np.testing.assert_array_equal(given, [[1, 1]])


def test_strided_gradients_become_dense():
    x = leaf(np.ones((2, 3)))
    call = Call("transpose", x)
    y = call.output(call.raw[0].transpose(0, 1), lambda dy: (dy.transpose(0, 1),))
    y.backward(np.arange(6.0).reshape(3, 2))
    assert x.raw_grad.is_contiguous()
    np.testing.assert_array_equal(x.grad, np.arange(6.0).reshape(3, 2).T)
    z = leaf(np.ones((2, 3)))
    call = Call("sum", z)
    total = call.output(_C.reduce("sum", call.raw[0], (0, 1), False), lambda dy: (dy.broadcast_to((2, 3)),))
    total.backward()
    assert z.raw_grad.is_contiguous()
    z.grad.numpy()[0, 0] = 5
    assert z.grad.tolist() == [[5, 1, 1], [1, 1, 1]]


def test_backward_frees_what_the_forward_pass_saved():
    x = leaf(np.ones(100_000))
    before = drupe.memory_stats()["in_use_bytes"]
    y = x
    for _ in range(10):
        y = ops.tanh(y)
    assert drupe.memory_stats()["in_use_bytes"] >= before + 10 * 800_000
    y.backward(np.ones(100_000))
    gc.collect()
    assert drupe.memory_stats()["in_use_bytes"] <= before + 3 * 1_000_000  # y and the gradient
    del y
    x.grad = None
    assert drupe.memory_stats()["in_use_bytes"] == before


def test_a_dropped_graph_needs_no_collector():
    gc.disable()
    try:
        x = leaf([1.0])
        y = ops.gemm(ops.tanh(x).detach().numpy()[None], leaf([[2.0]]), activation="gelu")
        node = weakref.ref(y)
        del y
        assert node() is None
    finally:
        gc.enable()


# ---- what refuses


def test_second_backward():
    x = leaf([0.5])
    y = ops.tanh(x)
    y.backward()
    with pytest.raises(RuntimeError, match=r"\[tanh\] backward through a graph that an earlier backward freed"):
        y.backward()
    assert x.grad.tolist() == [pytest.approx(1 - np.tanh(0.5) ** 2)]


def test_retain_graph():
    x = leaf([0.5])
    y = ops.tanh(x)
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad, 3 * (1 - np.tanh([0.5]) ** 2))
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()


def test_a_shared_part_that_was_freed():
    x = leaf([0.5])
    shared = ops.tanh(x)
    scale(shared, 2).backward()
    with pytest.raises(RuntimeError, match=r"\[tanh\].*freed"):
        scale(shared, 3).backward()


def test_inputs_changed_in_place():
    x, w = leaf([[1.0, 2.0]]), leaf([[3.0], [4.0]])
    y = ops.gemm(x, w)
    w.copy_from(np.zeros((2, 1)))
    with pytest.raises(RuntimeError, match=r"\[gemm\] an input of shape \(2, 1\) was changed in place"):
        y.backward()
    assert x.grad is None
    ops.gemm(x, w).backward()
    assert x.grad.tolist() == [[0, 0]]


def test_results_are_not_written_in_place():
    x = leaf([1.0, 2.0])
    y = ops.tanh(x)
    with pytest.raises(RuntimeError, match=r"came from tanh on the tape"):
        y.copy_from(np.zeros(2))
    y.backward(np.ones(2))


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (None, r"a tensor of shape \(2,\) needs an explicit gradient"),
        (np.ones(3), r"expected a float64 gradient of shape \(2,\), got float64 \(3,\)"),
        (np.ones((1, 2)), r"got float64 \(1, 2\)"),
        (np.ones(()), r"got float64 \(\)"),
        (np.ones(2, np.float32), r"got float32 \(2,\)"),
        (np.ones(2, np.int64), r"got int64 \(2,\)"),
    ],
)
def test_gradients_that_do_not_fit(gradient, message):
    x = leaf([1.0, 2.0])
    with pytest.raises(ValueError, match=message):
        ops.tanh(x).backward(gradient)
    assert x.grad is None
    if gradient is not None:
        with pytest.raises(ValueError, match="gradient of shape"):
            x.grad = gradient


def test_a_gradient_may_be_strided():
    x = leaf(np.zeros((2, 3)))
    dy = np.arange(6.0).reshape(3, 2).T
    ops.tanh(x).backward(dy)
    np.testing.assert_array_equal(x.grad, dy)
    x.grad = None
    ops.tanh(x).backward(np.broadcast_to(2.0, (2, 3)))
    np.testing.assert_array_equal(x.grad, np.full((2, 3), 2.0))


def test_one_element_needs_no_gradient():
    for shape in [(), (1,), (1, 1)]:
        x = leaf(np.full(shape, 0.5))
        ops.tanh(x).backward()
        np.testing.assert_allclose(x.grad, np.full(shape, 1 - np.tanh(0.5) ** 2))


def test_a_rule_that_gives_the_wrong_shape():
    x = leaf([1.0, 2.0])
    call = Call("wrong", x)
    y = call.output(call.raw[0], lambda dy: (_C.full((1,), 1.0, "float64"),))
    with pytest.raises(RuntimeError, match=r"\[wrong\] backward gave \(1,\) for an input of shape \(2,\)"):
        y.backward(np.ones(2))
    assert x.grad is None


def test_a_rule_that_raises():
    x = leaf([1.0])
    call = Call("broken", x)

    def backward(dy):
        raise ZeroDivisionError

    y = call.output(call.raw[0], backward)
    with pytest.raises(ZeroDivisionError):
        y.backward()
    assert x.grad is None


# ---- gradients of few rows


def gather(weight, rows):
    call = Call("gather", weight)
    (raw,) = call.raw
    y = drupe.as_tensor(drupe.Tensor(raw).numpy()[rows]).raw

    def backward(dy):
        values = drupe.Tensor(dy).numpy()
        unique, inverse = np.unique(rows, return_inverse=True)
        sums = np.zeros((unique.size, values.shape[1]))
        np.add.at(sums, inverse, values)
        return (SparseRows(drupe.tensor(unique).raw, drupe.tensor(sums).raw, raw.shape),)

    return call.output(y, backward)


def dense(grad):
    if isinstance(grad, SparseRows):
        whole = np.zeros(grad.shape)
        whole[drupe.Tensor(grad.indices).numpy()] = drupe.Tensor(grad.values).numpy()
        return whole
    return grad.numpy()


def test_sparse_rows_accumulate(rng):
    weight = leaf(rng.standard_normal((10, 3)))
    first, second = [1, 7, 1], [7, 2]
    dy = rng.standard_normal((3, 3)), rng.standard_normal((2, 3))
    expected = np.zeros((10, 3))
    np.add.at(expected, first, dy[0])
    gather(weight, first).backward(dy[0])
    assert isinstance(weight.grad, SparseRows)
    np.testing.assert_allclose(dense(weight.grad), expected)
    gather(weight, second).backward(dy[1])
    np.add.at(expected, second, dy[1])
    assert isinstance(weight.grad, SparseRows)
    assert drupe.Tensor(weight.grad.indices).tolist() == [1, 2, 7]
    np.testing.assert_allclose(dense(weight.grad), expected)


@pytest.mark.parametrize("sparse_first", [True, False])
def test_sparse_and_dense_accumulate(rng, sparse_first):
    weight = leaf(rng.standard_normal((10, 3)))
    expected = np.ones((10, 3))
    expected[4] += 2

    def run(sparse):
        if sparse:
            gather(weight, [4]).backward(np.full((1, 3), 2.0))
        else:
            scale(weight, 1).backward(np.ones((10, 3)))

    run(sparse_first)
    run(not sparse_first)
    assert isinstance(weight.grad, drupe.Tensor)
    np.testing.assert_allclose(dense(weight.grad), expected)
    weight.grad = None
    add_both = add(gather(weight, list(range(10))), scale(weight, 1))
    add_both.backward(np.ones((10, 3)))
    np.testing.assert_allclose(dense(weight.grad), np.full((10, 3), 2.0))


@pytest.mark.parametrize("dense_first", [True, False])
def test_rows_are_not_added_to_memory_that_others_read(rng, dense_first):
    weight, x = leaf(rng.standard_normal((5, 3))), leaf(rng.standard_normal((5, 3)))
    dy = rng.standard_normal((5, 3))
    expected = dy.copy()
    expected[2] += dy[2]
    scaled = scale(x, 3)  # goes back last; its gradient comes in the memory of weight's dense one
    if dense_first:  # the younger op goes back first
        rows = gather(weight, [2])
        both = add(weight, scaled)
    else:
        both = add(weight, scaled)
        rows = gather(weight, [2])
    call = Call("join", both, rows)
    y = call.output(drupe.zeros((1,)).raw, lambda _: (drupe.tensor(dy).raw, drupe.tensor(dy[2:3]).raw))
    y.backward(retain_graph=True)
    np.testing.assert_allclose(x.grad.numpy(), 3 * dy)
    np.testing.assert_allclose(dense(weight.grad), expected)
    before = weight.grad
    y.backward()
    np.testing.assert_allclose(dense(weight.grad), 2 * expected)
    np.testing.assert_allclose(dense(before), expected)


@pytest.mark.parametrize("order", ["dense first", "products first", "products only", "one product"])
def test_products_are_added_up_in_their_epilogues(rng, monkeypatch, order):
    x, w = leaf(rng.standard_normal((4, 3))), [rng.standard_normal((3, 3)) for _ in range(2)]
    count = 1 if order == "one product" else 2
    h = scale(x, 3)
    if order == "products first":  # the younger op goes back first
        dense = scale(h, 5)
    outputs = [ops.gemm(h, each) for each in w[:count]]
    if order == "dense first":
        dense = scale(h, 5)
    if order.endswith("first"):
        outputs.append(dense)
    dy = rng.standard_normal((4, 3))
    call = Call("join", *outputs)
    y = call.output(_C.zeros((1,), "float64"), lambda _: (drupe.tensor(dy).raw,) * len(outputs))
    binary, names = _C.binary, []
    monkeypatch.setattr(_C, "binary", lambda name, *args: (names.append(name), binary(name, *args))[1])
    y.backward()
    assert names.count("add") == (order == "products first")
    expected = sum(dy @ each.T for each in w[:count]) + (5 * dy if order.endswith("first") else 0)
    np.testing.assert_allclose(x.grad.numpy(), 3 * expected, rtol=1e-12)


def test_products_and_sparse_rows_add_up(rng):
    x = leaf(rng.standard_normal((10, 3)))
    h, w = scale(x, 1), rng.standard_normal((3, 2))
    ys = gather(h, [4, 4, 7]), ops.gemm(h, w)
    dys = rng.standard_normal((3, 3)), rng.standard_normal((10, 2))
    call = Call("join", *ys)
    call.output(_C.zeros((1,), "float64"), lambda _: tuple(drupe.tensor(dy).raw for dy in dys)).backward()
    expected = dys[1] @ w.T
    np.add.at(expected, [4, 4, 7], dys[0])
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-12)
