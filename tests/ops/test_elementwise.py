from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

import drupe
from drupe import ops
from gradients import check_gradients
from reference import FLOATS, assert_close, dtype, f64

INTEGERS = ("int8", "uint8", "int32", "int64")
SHAPES = [
    ((3,), (3,)),
    ((33, 7), (7,)),
    ((33, 7), (33, 1)),
    ((1,), (4, 3)),
    ((2, 1, 5), (3, 1)),
    ((), ()),
    ((130, 200), (130, 200)),
    ((40001,), ()),
    ((0, 3), (3,)),
    ((1, 70), (70, 1)),
    ((6, 32), (32,)),
    ((6, 1), (6, 48)),
    ((3, 5, 16), (5, 1)),
    ((), (3000,)),
]
ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
}
UNARY = {
    "neg": np.negative,
    "abs": np.abs,
    "square": np.square,
    "sign": np.sign,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": np.reciprocal,
    "sin": np.sin,
    "cos": np.cos,
    "erf": erf,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
}
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 2.5, -2.5, np.inf, -np.inf, np.nan])


def draw(rng, shape, name):
    if name in INTEGERS:
        return rng.integers(0 if name == "uint8" else -5, 6, shape).astype(name)
    return np.asarray(rng.standard_normal(shape)).astype(dtype(name))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_float_arithmetic(backend, rng, name, shapes):
    a, b = draw(rng, shapes[0], name), draw(rng, shapes[1], name)
    for op, reference in ARITHMETIC.items():
        y = getattr(ops, op)(a, b)
        assert y.dtype == dtype(name)
        if op == "div":
            assert_close(y * b, f64(a) + np.zeros(y.shape), name)
        np.testing.assert_array_equal(f64(y), f64(reference(f64(a), f64(b)).astype(dtype(name))), op)


@pytest.mark.parametrize("name", FLOATS + INTEGERS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_comparisons(backend, rng, name, shapes):
    a, b = draw(rng, shapes[0], name), draw(rng, shapes[1], name)
    a = np.where(rng.random(a.shape) < 0.3, np.zeros((), a.dtype), a)
    for op, reference in COMPARISONS.items():
        y = getattr(ops, op)(a, b)
        assert y.dtype == bool
        np.testing.assert_array_equal(y, reference(f64(a), f64(b)), op)


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_arithmetic(backend, rng, name):
    limits = np.iinfo(name)
    a = rng.integers(limits.min, limits.max, (9, 100), dtype=name, endpoint=True)
    b = rng.integers(limits.min, limits.max, 100, dtype=name, endpoint=True)
    a[0, :2], b[:2] = limits.min, (-1 if limits.min else 1)
    b[b == 0] = 3
    for op in ("add", "sub", "mul", "maximum", "minimum"):
        np.testing.assert_array_equal(getattr(ops, op)(a, b), ARITHMETIC[op](a, b), op)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of the smallest integer over -1, which wraps around
        np.testing.assert_array_equal(ops.div(a, b), a // b)
    exponent = rng.integers(0, 20, 100).astype(name)
    np.testing.assert_array_equal(ops.pow(a, exponent), a**exponent)
    for op in ("neg", "abs", "square", "sign"):
        np.testing.assert_array_equal(getattr(ops, op)(a), UNARY[op](a), op)


def test_bool_operations(backend, rng):
    a, b = rng.random(200) < 0.5, rng.random(200) < 0.5
    for op in [*COMPARISONS, "maximum", "minimum"]:
        reference = {**COMPARISONS, **ARITHMETIC}[op]
        np.testing.assert_array_equal(getattr(ops, op)(a, b), reference(a, b), op)
    np.testing.assert_array_equal(ops.logical_not(a), ~a)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("op", UNARY)
@pytest.mark.parametrize("shape", [(), (1,), (15,), (16,), (33, 5), (40003,), (0, 4)], ids=str)
def test_unary(backend, rng, name, op, shape):
    x = draw(rng, shape, name)
    if op in ("log", "sqrt", "rsqrt", "log1p", "reciprocal"):
        x = np.asarray(np.abs(x) + dtype(name).type(0.01))
    y = getattr(ops, op)(x)
    assert y.dtype == dtype(name)
    assert_close(y, np.asarray(UNARY[op](f64(x))), name)


@pytest.mark.parametrize("name", FLOATS)
def test_special_values(backend, name):
    x = SPECIAL.astype(dtype(name))
    with np.errstate(all="ignore"):
        for op, reference in UNARY.items():
            if op in ("sin", "cos"):
                continue
            expected = reference(f64(x))
            actual = f64(getattr(ops, op)(x))
            np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected), op)
            np.testing.assert_array_equal(np.isinf(actual), np.isinf(expected), op)
        a, b = (np.ascontiguousarray(g.reshape(-1)) for g in np.meshgrid(x, x))
        for op, reference in {**ARITHMETIC, **COMPARISONS, "pow": np.power}.items():
            expected = reference(f64(a), f64(b))
            np.testing.assert_allclose(f64(getattr(ops, op)(a, b)), expected, rtol=0.01, err_msg=op)
        np.testing.assert_array_equal(ops.isnan(x), np.isnan(x))
        np.testing.assert_array_equal(ops.isfinite(x), np.isfinite(x))
        np.testing.assert_array_equal(ops.logical_not(x), f64(x) == 0)
        np.testing.assert_array_equal(f64(ops.clamp(x, -1, 2)), np.clip(f64(x), -1, 2))


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_pow(backend, rng, name):
    a = np.abs(draw(rng, (17, 9), name)) + 0.1
    b = draw(rng, 9, name)
    assert_close(ops.pow(a, b), f64(a) ** f64(b), name, scale=50)
    assert_close(ops.pow(a, 2), f64(a) ** 2, name)
    assert_close(ops.pow(-a, 3), f64(-a) ** 3, name, scale=10)
    assert_close(ops.pow(2.0, b), 2.0 ** f64(b), name, scale=5)


@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS, "bool"])
def test_where(backend, rng, name):
    for shape_c, shape_a, shape_b in [((200,), (200,), (200,)), ((5, 1), (7,), ()), ((3, 4), (4,), (3, 1))]:
        condition = rng.random(shape_c) < 0.5
        a, b = (
            draw(rng, shape, "int8" if name == "bool" else name).astype(dtype(name)) for shape in (shape_a, shape_b)
        )
        np.testing.assert_array_equal(ops.where(condition, a, b), np.where(condition, a, b))
    np.testing.assert_array_equal(ops.where(condition, 1, a), np.where(condition, np.ones((), a.dtype), a)) if (
        name != "bool"
    ) else None


def test_strided_operands(backend, rng):
    x = rng.standard_normal((12, 20, 30)).astype(np.float32)
    y = rng.standard_normal((30, 20, 12)).astype(np.float32)
    for a, b in [
        (x[::2, ::-1, ::3], y.T[::2, :, ::3]),
        (x.transpose(1, 0, 2), y.transpose(1, 2, 0)),
        (x[:, :, ::-1], y.T),
        (x[:, :, :1], y.T),
        (x, y.T[:, 3:4, :]),
        (np.broadcast_to(x[:, :1], x.shape), y.T),
    ]:
        np.testing.assert_array_equal(ops.sub(a, b), a - b)
        np.testing.assert_array_equal(ops.lt(a, b), a < b)
        np.testing.assert_array_equal(ops.where(ops.gt(a, 0.0), a, b), np.where(a > 0, a, b))
        np.testing.assert_array_equal(ops.abs(a), np.abs(a))


def test_memory_order_is_kept(backend, rng):
    x = drupe.tensor(rng.standard_normal((2, 5, 6, 3)).astype(np.float32)).permute(0, 3, 1, 2)
    bias = drupe.tensor(rng.standard_normal((3, 1, 1)).astype(np.float32))
    for y in (ops.exp(x), x + bias, bias + x, x * x, ops.where(x > 0.0, x, 0.0), x > 0.0, x * 2):
        assert y.strides == x.strides
    np.testing.assert_array_equal((x + bias).numpy(), x.numpy() + bias.numpy())


def test_misaligned_and_read_only(backend, rng):
    buffer = np.zeros(4 * 100 + 1, np.uint8)
    a = buffer[1:].view(np.float32)
    a[...] = rng.standard_normal(100)
    b = rng.standard_normal(100).astype(np.float32)
    b.flags.writeable = False
    np.testing.assert_array_equal(ops.mul(a, b), a * b)
    np.testing.assert_array_equal(ops.neg(b), -b)


def test_rows_that_packs_do_not_fit(backend, rng):
    """Views of tensors, which are not copied: rows that begin or end off a multiple of 16 bytes."""
    for name in ("float32", "bfloat16", "int8"):
        base = draw(rng, (20, 50), name)
        there = drupe.tensor(base)
        row = draw(rng, 50, name)
        for columns in (slice(0, 48), slice(1, 49), slice(16, 48), slice(0, 50, 2), slice(None, None, -1)):
            a, b = base[:, columns], row[columns]
            y = ops.add(there[:, columns], drupe.tensor(row)[columns])
            np.testing.assert_array_equal(f64(y.numpy()), f64((f64(a) + f64(b)).astype(dtype(name))))
            mask = ops.gt(there[:, columns], there[:, columns][::-1])
            np.testing.assert_array_equal(mask.numpy(), f64(a) > f64(a)[::-1])
            y = ops.where(mask, there[:, columns], 1)
            np.testing.assert_array_equal(f64(y.numpy()), np.where(f64(a) > f64(a)[::-1], f64(a), 1))


DEVICES = ["cpu", "cuda"] if drupe.cuda_status()["available"] else ["cpu"]


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs two devices")
@pytest.mark.parametrize("op", [ops.add, ops.gt, lambda a, b: ops.where(ops.gt(b, 0), a, a), ops.mse])
def test_two_devices_do_not_mix(op):
    x = drupe.ones((3,))
    with pytest.raises(ValueError, match="cuda:0"):
        op(x, x.to("cuda"))


@pytest.mark.parametrize("place", DEVICES)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_views_broadcast(place, data):
    ndim = data.draw(st.integers(0, 4))
    extents = data.draw(st.lists(st.integers(1, 5), min_size=ndim, max_size=ndim))
    operands = []
    for _ in range(2):
        kept = data.draw(st.integers(0, ndim))
        shape = [e if data.draw(st.booleans()) else 1 for e in extents[ndim - kept :]]
        steps = [data.draw(st.sampled_from([-2, -1, 1, 3])) for _ in shape]
        order = data.draw(st.permutations(range(len(shape))))
        base = np.random.default_rng(ndim).standard_normal([shape[i] * abs(steps[i]) for i in order])
        view = base[tuple(slice(None, None, steps[i]) for i in order)].transpose(np.argsort(order).tolist())
        assert view.shape == tuple(shape)
        operands.append(view)
    a, b = operands
    with drupe.default_device(place):
        np.testing.assert_array_equal(ops.sub(a, b), a - b)


def test_scalars_take_the_dtype(backend):
    for name in FLOATS:
        x = np.ones(3, dtype(name))
        for y in (ops.mul(x, 2), ops.mul(2.5, x), ops.add(x, True), ops.sub(np.float64(1), x), ops.add(np.int64(3), x)):
            assert y.dtype == dtype(name)
    big = np.array([2**62 + 1])
    np.testing.assert_array_equal(ops.sub(big, 2**62), [1])
    np.testing.assert_array_equal(ops.eq(np.array([True, False]), True), [True, False])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.add(np.ones(3), np.ones(3, np.float32)), TypeError, r"\[add\] a is float64, b is float32"),
        (lambda: ops.mul(np.ones(3, int), 1.5), TypeError, r"\[mul\] the float 1.5 .* int64"),
        (lambda: ops.add(np.ones(3, bool), 1), TypeError, r"\[add\] the integer 1 .* bool"),
        (lambda: ops.add(np.ones(3, bool), np.ones(3, bool)), TypeError, r"\[add\] a and b are bool"),
        (lambda: ops.add(np.ones(3, np.uint8), 256), ValueError, r"256 does not fit in uint8"),
        (lambda: ops.add(np.ones((2, 3)), np.ones(4)), ValueError, r"\[add\] shapes \(2, 3\) and \(4,\)"),
        (lambda: ops.div(np.ones(3, int), np.array([1, 0, 2])), ValueError, r"\[div\] .* division by zero"),
        (lambda: ops.div(np.ones(3, int), 0), ValueError, "division by zero"),
        (lambda: ops.pow(np.ones(3, int), -1), ValueError, r"\[pow\] the exponent -1 is negative"),
        (lambda: ops.exp(np.ones(3, int)), TypeError, r"\[exp\] x is int64"),
        (lambda: ops.neg(np.ones(3, bool)), TypeError, r"\[neg\] x is bool"),
        (lambda: ops.where(np.ones(3), np.ones(3), np.ones(3)), TypeError, r"\[where\] the condition is float64"),
        (lambda: ops.where(np.ones(3, bool), np.ones(3), np.ones(3, int)), TypeError, r"a is float64, b is int64"),
        (lambda: ops.clamp(np.ones(3), 2, 1), ValueError, r"\[clamp\] the bounds are 2 and 1"),
        (lambda: ops.clamp(np.ones(3), float("nan")), ValueError, r"\[clamp\]"),
        (lambda: ops.clamp(np.ones(3, int), 0), TypeError, r"\[clamp\] x is int64"),
        (lambda: ops.add([1.0], np.ones(1)), TypeError, r"\[add\] expected an array .* got list"),
        (lambda: ops.add(1.0, 2.0), TypeError, r"\[add\] expected an array"),
    ],
)
def test_errors(device, call, error, message):
    with pytest.raises(error, match=message):
        call()


BINARY_GRADIENTS = [((4, 3), (4, 3)), ((4, 3), (3,)), ((4, 1), (1, 3)), ((), (2, 3)), ((0, 3), (3,))]


@pytest.mark.parametrize("op", [*ARITHMETIC, "pow"])
@pytest.mark.parametrize("shapes", BINARY_GRADIENTS, ids=str)
def test_binary_gradients(device, rng, op, shapes):
    a, b = (np.asarray(rng.uniform(0.5, 2, shape)) for shape in shapes)
    check_gradients(getattr(ops, op), a, b, rng=rng)
    if a.size:
        check_gradients(lambda a: getattr(ops, op)(a, 3), a, rng=rng)
        check_gradients(lambda a: getattr(ops, op)(3, a), a, rng=rng)


@pytest.mark.parametrize("op", UNARY)
def test_unary_gradients(device, rng, op):
    x = rng.uniform(0.2, 2, (3, 5)) + 0.01
    if op not in ("log", "log1p", "sqrt", "rsqrt"):
        x *= rng.choice([-1, 1], x.shape)
    check_gradients(getattr(ops, op), x, rng=rng)
    check_gradients(lambda x: ops.transpose(getattr(ops, op)(ops.transpose(x))), x, rng=rng)


def test_other_gradients(device, rng):
    x, y = rng.standard_normal((2, 4, 5))
    check_gradients(lambda x: ops.clamp(x, -0.5, 0.7), x, rng=rng)
    condition = rng.random((4, 1)) < 0.5
    check_gradients(lambda a, b: ops.where(condition, a, b), x, y[0], rng=rng)
    check_gradients(lambda a: ops.where(condition, a, 0), x, rng=rng)
    check_gradients(lambda x: ops.mul(x, x), x, rng=rng)


def gradient(function, *values):
    leaves = [drupe.tensor(np.array(v, np.float64), requires_grad=True) for v in values]
    ops.sum(function(*leaves)).backward()
    return [leaf.grad.numpy().tolist() for leaf in leaves]


def test_gradients_where_they_are_conventions(device):
    assert gradient(ops.maximum, [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == [[0.5, 0, 1], [0.5, 1, 0]]
    assert gradient(ops.minimum, [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == [[0.5, 1, 0], [0.5, 0, 1]]
    assert gradient(ops.abs, [0.0, -2.0]) == [[0, -1]]
    assert gradient(ops.sign, [0.0, -2.0]) == [[0, 0]]
    assert gradient(lambda x: ops.pow(x, 0), [0.0, 2.0]) == [[0, 0]]
    assert gradient(lambda b: ops.pow(np.zeros(2), b), [0.0, 2.0]) == [[0, 0]]
    assert gradient(lambda x: ops.clamp(x, 0, 1), [0.0, 1.0, 2.0]) == [[1, 1, 0]]


def test_only_what_is_asked_for_gets_a_gradient(device, rng):
    a = drupe.tensor(rng.standard_normal(3), requires_grad=True)
    b = drupe.tensor(rng.standard_normal(3))
    ops.sum(ops.div(a, b)).backward()
    np.testing.assert_allclose(a.grad.numpy(), 1 / b.numpy())
    assert b.grad is None
    assert not ops.gt(a, b).requires_grad


def test_same_bits_on_any_number_of_threads(backend, rng):
    a, b = rng.standard_normal((2, 300, 401)).astype(np.float32)
    before = drupe.num_threads()
    results = []
    for threads in (1, 2, 5):
        drupe.set_num_threads(threads)
        results.append(np.stack([ops.add(a, b), ops.exp(a), ops.where(ops.gt(a, b), a, b)]))
    drupe.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
