from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import Tensor, ops
from gradients import check_gradients


@pytest.fixture
def a(rng):
    return rng.uniform(0.5, 2, (3, 4)).astype(np.float32)


@pytest.fixture
def b(rng):
    return rng.uniform(0.5, 2, (3, 4)).astype(np.float32)


OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_take_tensors_arrays_and_scalars_on_both_sides(a, b, operator):
    f = OPERATORS[operator]
    for left, right in [
        (drupe.tensor(a), drupe.tensor(b)),
        (drupe.tensor(a), b),
        (a, drupe.tensor(b)),
        (drupe.tensor(a), 2),
        (1.5, drupe.tensor(b)),
        (np.float64(1.5), drupe.tensor(b)),
        (drupe.tensor(a), np.float32(2)),
        (drupe.tensor(a), drupe.tensor(b)[0]),
    ]:
        y = f(left, right)
        assert isinstance(y, Tensor)
        expected = f(np.asarray(left), np.asarray(right))
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6)
        assert y.dtype == (bool if expected.dtype == bool else np.float32)


def test_matrix_product(a, b):
    for left, right in [(drupe.tensor(a), drupe.tensor(b.T)), (drupe.tensor(a), b.T), (a, drupe.tensor(b.T))]:
        y = left @ right
        assert isinstance(y, Tensor)
        np.testing.assert_allclose(y.numpy(), a @ b.T, rtol=1e-5)
    np.testing.assert_allclose((drupe.tensor(a) @ drupe.tensor(b[0])).numpy(), a @ b[0], rtol=1e-5)


def test_unary_operators_and_methods(a):
    t = drupe.tensor(a - 1)
    x = a - 1
    for actual, expected in [
        (-t, -x),
        (+t, x),
        (abs(t), abs(x)),
        (t.abs(), abs(x)),
        (t.exp(), np.exp(x)),
        ((t + 2).log(), np.log(x + 2)),
        ((t + 2).sqrt(), np.sqrt(x + 2)),
        (t.clamp(0, 0.5), x.clip(0, 0.5)),
        (t.sum(), x.sum()),
        (t.sum(1), x.sum(1)),
        (t.mean(0, keepdims=True), x.mean(0, keepdims=True)),
        (t.var(1, ddof=1), x.var(1, ddof=1)),
        (t.prod(-1), x.prod(-1)),
        (t.max(), x.max()),
        (t.min((0, 1)), x.min()),
        (t.argmax(), x.argmax()),
        (t.argmin(1), x.argmin(1)),
        ((t > 0).any(1), (x > 0).any(1)),
        ((t > 0).all(), (x > 0).all()),
        (t.reshape(4, 3), x.reshape(4, 3)),
        (t.reshape((2, -1)), x.reshape(2, -1)),
        (t.permute(1, 0), x.T),
        (t.permute((1, 0)), x.T),
        (t.transpose(), x.T),
        (t.T, x.T),
        (t.flatten(), x.reshape(-1)),
        (t.unsqueeze(1), x[:, None]),
        (t.unsqueeze(1).squeeze(1), x),
        (t.broadcast_to(2, 3, 4), np.broadcast_to(x, (2, 3, 4))),
        (t.astype("float64"), x.astype(np.float64)),
        (t.T.contiguous(), x.T),
        (t[1], x[1]),
        (t[..., ::-2], x[..., ::-2]),
    ]:
        assert isinstance(actual, Tensor)
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)
        assert actual.dtype == expected.dtype


def test_iteration_and_membership(a):
    t = drupe.tensor(a)
    assert [row.tolist() for row in t] == a.tolist()
    assert a[1, 2] in t
    assert 99 not in t
    with pytest.raises(TypeError, match="no length"):
        iter(t.sum())


def test_identity_decides_about_sets_and_dictionaries(a):
    t, u = drupe.tensor(a), drupe.tensor(a)
    assert len({t, u, t}) == 2
    assert {t: 1, u: 2}[t] == 1


def test_comparison_with_other_objects_is_not_ours(a):
    t = drupe.tensor(a)
    assert (t == None) is False  # noqa: E711
    assert (t != "x") is True
    with pytest.raises(TypeError, match="unsupported operand"):
        t + "x"
    with pytest.raises(TypeError):
        t < None  # noqa: B015
    with pytest.raises(ValueError, match="12 elements, not one"):
        bool(t == t)


def test_gradients_flow_through_expressions(rng):
    x, y = rng.uniform(1, 2, (2, 3, 3))
    check_gradients(lambda x, y: (2 * x - y / x) ** 2 @ y.T + abs(-x).log()[1], x, y, rng=rng)


def test_in_place_arithmetic_rebinds_and_spares_the_recorded_tensor(a):
    t = drupe.tensor(a, requires_grad=True)
    before = u = t * 1.0
    u += 1
    u *= 2
    assert u is not before
    np.testing.assert_array_equal(before.numpy() if not before.requires_grad else before.detach().numpy(), a)
    u.sum().backward()
    np.testing.assert_array_equal(t.grad.numpy(), np.full_like(a, 2))


def test_elements_cannot_be_assigned(a):
    t = drupe.tensor(a)
    with pytest.raises(TypeError, match=r"\[setitem\] .* cannot be assigned"):
        t[0] = 1
    np.testing.assert_array_equal(t.numpy(), a)


def test_numpy_leaves_expressions_to_the_tensor(a, b):
    t = drupe.tensor(b)
    with pytest.raises(TypeError):
        np.add(a, t)
    with pytest.raises(TypeError):
        a += t
    assert isinstance(np.float32(3) * t, Tensor)
    np.testing.assert_array_equal(np.asarray(t), b)


def test_methods_are_the_ops(a):
    t = drupe.tensor(a)
    np.testing.assert_array_equal(t.sum(1).numpy(), ops.sum(a, axis=1))
    with pytest.raises(TypeError, match=r"\[add\] a is float32, b is float64"):
        t + a.astype(np.float64)
    with pytest.raises(TypeError, match=r"the float 0\.5"):
        t.argmax(0) * 0.5
