from __future__ import annotations

import math

import numpy as np
import pytest

import drupe
from drupe import SparseRows, ops, optim

MAKERS = {
    "sgd": lambda p: optim.SGD(p, 0.02),
    "momentum": lambda p: optim.SGD(p, 0.02, momentum=0.9),
    "nesterov": lambda p: optim.SGD(p, 0.02, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, 0.05),
    "adamw": lambda p: optim.AdamW(p, 0.05, weight_decay=1e-4),
    "rmsprop": lambda p: optim.RMSprop(p, 0.01),
    "rmsprop-all": lambda p: optim.RMSprop(p, 0.005, centered=True, momentum=0.5, eps=1e-2),
}


def leaf(x, dtype=np.float32):
    return drupe.tensor(np.asarray(x, dtype), requires_grad=True)


def value(t):
    return t.detach().numpy()


def run(params, optimizer, steps):
    """Take a step for each list of gradients."""
    for grads in steps:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()


def least_squares(rng):
    """A gradient function of a convex problem, and its solution."""
    a = rng.standard_normal((40, 5)) / np.sqrt(40)
    solution = rng.standard_normal(5)
    return lambda x: 2 * a.T @ (a @ x - a @ solution), solution


@pytest.mark.parametrize("name", MAKERS)
def test_converges_on_a_convex_problem(rng, name):
    gradient, solution = least_squares(rng)
    x = leaf(np.zeros(5))
    optimizer = MAKERS[name]([x])
    for step in range(2000):
        for group in optimizer.param_groups:
            group["lr"] *= 0.998 if step > 300 else 1
        x.grad = gradient(value(x)).astype(np.float32)
        optimizer.step()
    np.testing.assert_allclose(value(x), solution, atol=2e-2)


@pytest.mark.parametrize("name", MAKERS)
def test_goes_on_bit_for_bit_from_its_state(rng, name):
    start = [rng.standard_normal(s) for s in ((7, 3), (20,))]
    grads = [[rng.standard_normal(p.shape).astype(np.float32) for p in start] for _ in range(8)]

    straight = [leaf(p) for p in start]
    run(straight, MAKERS[name](straight), grads)
    first = [leaf(p) for p in start]
    optimizer = MAKERS[name](first)
    run(first, optimizer, grads[:4])
    second = [leaf(value(p)) for p in first]
    resumed = MAKERS[name](second)
    state = optimizer.state_dict()
    resumed.load_state_dict(state)
    run(first, optimizer, grads[4:])  # must not reach into what was loaded
    run(second, resumed, grads[4:])
    for a, b, c in zip(straight, first, second, strict=True):
        np.testing.assert_array_equal(value(a), value(b))
        np.testing.assert_array_equal(value(a), value(c))


NARROW = {
    "sgd": lambda p, **how: optim.SGD(p, 0.02, momentum=0.9, **how),
    "adam": lambda p, **how: optim.Adam(p, 0.05, **how),
    "adamw": lambda p, **how: optim.AdamW(p, 0.05, weight_decay=1e-4, **how),
    "rmsprop": lambda p, **how: optim.RMSprop(p, 0.01, momentum=0.5, **how),
}


@pytest.mark.parametrize("kind", ["bfloat16", "uint8"])
@pytest.mark.parametrize("name", NARROW)
def test_narrow_states_converge_as_wide_ones(rng, name, kind):
    curvature = 10.0 ** rng.uniform(-1, 0.5, (80, 64))
    solution = rng.standard_normal((80, 64))

    def loss(state_dtype):
        x = leaf(np.zeros((80, 64)))
        optimizer = NARROW[name]([x], state_dtype=state_dtype)
        for step in range(400):
            for group in optimizer.param_groups:
                group["lr"] *= 0.985 if step > 100 else 1
            noise = np.random.default_rng(step).standard_normal(x.shape)
            x.grad = (curvature * (value(x) - solution) + 0.1 * noise).astype(np.float32)
            optimizer.step()
        states = [s for s in optimizer.state[id(x)].values() if getattr(s, "shape", None) == x.shape]
        assert {str(s.dtype) for s in states} == {state_dtype}
        return np.square(value(x) - solution).mean()

    wide = loss("float32")
    assert wide < 0.2
    assert loss(kind) < 1.1 * wide + 1e-3


@pytest.mark.parametrize("kind", ["bfloat16", "uint8"])
@pytest.mark.parametrize("name", NARROW)
def test_narrow_states_go_on_bit_for_bit(rng, name, kind):
    start = [rng.standard_normal(s) for s in ((70, 60), (20,))]
    grads = [[rng.standard_normal(p.shape).astype(np.float32) for p in start] for _ in range(6)]

    first = [leaf(p) for p in start]
    optimizer = NARROW[name](first, state_dtype=kind)
    run(first, optimizer, grads[:3])
    state = optimizer.state_dict()
    second = [leaf(value(p)) for p in first]
    resumed = NARROW[name](second, state_dtype=kind)
    resumed.load_state_dict(state)
    run(first, optimizer, grads[3:])
    run(second, resumed, grads[3:])
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(value(a), value(b))
    small = [s for s in optimizer.state[id(first[1])].values() if getattr(s, "shape", None) == (20,)]
    assert {str(s.dtype) for s in small} == {"float32"}  # too small to be worth it
    wide = NARROW[name]([leaf(p) for p in start])
    with pytest.raises(ValueError, match=r"the state of parameter 0 has|expected float32"):
        wide.load_state_dict({**state, "param_groups": wide.state_dict()["param_groups"]})


def test_state_dtype_is_checked():
    with pytest.raises(ValueError, match=r"state_dtype is 'int4': expected one of float32, bfloat16, uint8"):
        optim.AdamW([leaf([1.0])], 0.1, state_dtype="int4")


@pytest.mark.parametrize("name", MAKERS)
def test_is_the_op_on_lists(rng, name):
    p, g = rng.standard_normal(33).astype(np.float32), rng.standard_normal(33).astype(np.float32)
    x = leaf(p)
    optimizer = MAKERS[name]([x])
    x.grad = g
    optimizer.step(grad_scale=0.5)
    zeros = [np.zeros((1, 33), np.float32) for _ in range(3)]
    expected = [p.copy()]
    if name == "sgd":
        ops.sgd(expected, [g], lr=0.02, grad_scale=0.5)
    elif name in ("momentum", "nesterov"):
        ops.sgd(expected, [g], zeros[0], lr=0.02, momentum=0.9, nesterov=name == "nesterov", grad_scale=0.5)
    elif name == "adam":
        ops.adam(expected, [g], zeros[0], zeros[1], step=1, lr=0.05, grad_scale=0.5)
    elif name == "adamw":
        ops.adamw(expected, [g], zeros[0], zeros[1], step=1, lr=0.05, weight_decay=1e-4, grad_scale=0.5)
    elif name == "rmsprop":
        ops.rmsprop(expected, [g], zeros[0], lr=0.01, grad_scale=0.5)
    else:
        options = {"lr": 0.005, "centered": True, "momentum": 0.5, "eps": 1e-2, "grad_scale": 0.5}
        ops.rmsprop(expected, [g], *zeros, **options)
    np.testing.assert_array_equal(value(x), expected[0])


def test_groups_have_their_own_options():
    a, b, c = leaf(np.ones(3)), leaf(np.ones(3)), leaf(np.ones(3))
    optimizer = optim.SGD([{"params": [a], "lr": 0.5}, {"params": b, "weight_decay": 1.0}], lr=0.1)
    optimizer.add_param_group({"params": [c], "lr": 0.0, "l1": 1.0})
    for p in (a, b, c):
        p.grad = np.ones(3, np.float32)
    optimizer.step()
    np.testing.assert_allclose(value(a), 0.5)
    np.testing.assert_allclose(value(b), 0.8)
    np.testing.assert_allclose(value(c), 1.0)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.1, 0.0]


def test_parameters_without_a_gradient_are_skipped():
    a, b = leaf(np.ones(3)), leaf(np.ones(3))
    optimizer = optim.AdamW([a, b], lr=0.1)
    for step in range(3):
        a.grad = np.ones(3, np.float32)
        b.grad = np.ones(3, np.float32) if step == 2 else None
        optimizer.step()
    # The late one is corrected as in its first step: by the full rate.
    np.testing.assert_allclose(value(b), 1 * (1 - 0.1 * 0.01) - 0.1, rtol=1e-5)
    assert [s["step"] for s in optimizer.state_dict()["state"].values()] == [3, 1]
    optimizer.zero_grad()
    assert a.grad is None
    before = value(a).copy()
    optimizer.step()
    np.testing.assert_array_equal(value(a), before)


@pytest.mark.parametrize("name", MAKERS)
def test_sparse_gradients(rng, name):
    table = rng.standard_normal((50, 4))
    dense, sparse = leaf(table), leaf(table)
    optimizers = [MAKERS[name]([dense]), MAKERS[name]([sparse])]
    indices = np.array([[3, 3], [0, 49]])
    for _ in range(3):
        for p, is_sparse, optimizer in zip((dense, sparse), (False, True), optimizers, strict=True):
            optimizer.zero_grad()
            ops.embedding(p, indices, sparse=is_sparse).backward(np.ones((2, 2, 4), np.float32))
            assert isinstance(p.grad, SparseRows) == is_sparse
            optimizer.step()
    rows = [0, 3, 49]
    np.testing.assert_allclose(value(sparse)[rows], value(dense)[rows], rtol=1e-6)
    rest = np.setdiff1d(np.arange(50), rows)
    np.testing.assert_array_equal(value(sparse)[rest], table[rest].astype(np.float32))


def test_half_precision_parameters_have_float32_states():
    p = leaf(np.ones(5), np.float16)
    optimizer = optim.Adam([p])
    p.grad = np.ones(5, np.float16)
    optimizer.step()
    state = optimizer.state_dict()["state"][0]
    assert state["exp_avg"].dtype == np.float32
    assert p.dtype == np.float16


PRECISE = {
    "sgd": lambda p, **o: optim.SGD(p, 0.02, momentum=0.9, **o),
    "adam": lambda p, **o: optim.Adam(p, 0.05, **o),
    "adamw": lambda p, **o: optim.AdamW(p, 0.05, **o),
    "rmsprop": lambda p, **o: optim.RMSprop(p, 0.01, **o),
}


@pytest.mark.parametrize("name", PRECISE)
def test_master_weights_take_the_float32_steps(rng, name):
    start = rng.standard_normal(30).astype(np.float16)
    grads = [[rng.standard_normal(30).astype(np.float16)] for _ in range(5)]
    half, single = leaf(start, np.float16), leaf(start)
    optimizers = [PRECISE[name]([half], master_weights=True), PRECISE[name]([single], master_weights=True)]
    for (g,) in grads:
        half.grad, single.grad = g, g.astype(np.float32)
        for optimizer in optimizers:
            optimizer.step()
    state = optimizers[0].state_dict()["state"][0]
    assert state["master"].dtype == np.float32
    assert "master" not in optimizers[1].state_dict()["state"][0]
    np.testing.assert_array_equal(state["master"].numpy(), value(single))
    np.testing.assert_array_equal(value(half), value(single).astype(np.float16))


@pytest.mark.parametrize("option", [{"master_weights": True}, {"stochastic_rounding": True, "seed": 2**63 + 1}])
@pytest.mark.parametrize("name", PRECISE)
def test_16_bit_parameters_go_on_bit_for_bit(rng, name, option):
    start = [rng.standard_normal(s).astype(np.float16) for s in ((7, 3), (20,))]
    grads = [[rng.standard_normal(p.shape).astype(np.float16) for p in start] for _ in range(8)]

    def groups(params):
        return [{"params": params[:1]}, {"params": params[1:]}]

    straight, first = ([leaf(p, np.float16) for p in start] for _ in range(2))
    run(straight, PRECISE[name](groups(straight), **option), grads)
    optimizer = PRECISE[name](groups(first), **option)
    run(first, optimizer, grads[:4])
    second = [leaf(value(p), np.float16) for p in first]
    resumed = PRECISE[name](groups(second))
    resumed.load_state_dict(optimizer.state_dict())
    run(second, resumed, grads[4:])
    for a, b in zip(straight, second, strict=True):
        np.testing.assert_array_equal(value(a), value(b))


def test_groups_and_steps_draw_different_numbers():
    params = [leaf(np.ones(400), np.float16) for _ in range(3)]
    optimizer = optim.SGD([{"params": params[:2]}, {"params": params[2:]}], lr=1, stochastic_rounding=True)
    seen = []
    for _ in range(2):
        for p in params:
            p.copy_from(np.ones(400, np.float16))
            p.grad = np.full(400, -(2.0**-11), np.float16)
        optimizer.step()
        seen += [value(p).copy() for p in params]
    for i, a in enumerate(seen):
        assert set(np.unique(a)) == {1, 1 + 2.0**-10}
        assert all((a != b).any() for b in seen[:i])


def test_roundings_are_not_the_draws_of_a_program_with_the_same_seed():
    start, grad = np.ones(400, np.float16), np.full(400, -(2.0**-11), np.float16)
    p, others = leaf(start, np.float16), []
    p.grad = grad
    optim.SGD([p], lr=1, stochastic_rounding=True, seed=5).step()
    with drupe.random.preserved():
        drupe.manual_seed(5)
        for _ in range(4):
            others.append(start.copy())
            ops.sgd([others[-1]], [grad], lr=1, stochastic_rounding=True)
    for other in others:
        assert 120 < (other != value(p)).sum() < 280  # half of them


def test_masters_follow_their_option():
    p = leaf(np.ones(3), np.float16)
    optimizer = optim.SGD([p], lr=0.5, master_weights=True)
    p.grad = np.ones(3, np.float16)
    optimizer.step()
    optimizer.param_groups[0]["master_weights"] = False
    p.copy_from(np.full(3, 8.0, np.float16))
    optimizer.step()
    optimizer.param_groups[0]["master_weights"] = True
    optimizer.step()
    np.testing.assert_array_equal(value(p), 7)


def test_states_saved_before_there_were_masters_load():
    state = saved()
    for name in ("master_weights", "stochastic_rounding", "seed"):
        del state["param_groups"][0][name]
    optimizer = optim.Adam([leaf(np.ones(3))], lr=0.5)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["master_weights"] is False


def test_clip_grad_norm(rng):
    grads = [rng.standard_normal((3, 4)).astype(np.float32), rng.standard_normal(7).astype(np.float32)]
    params = [leaf(np.zeros(g.shape)) for g in grads] + [leaf(np.zeros(2))]
    table = leaf(np.zeros((9, 2)))
    ops.embedding(table, np.array([1, 1, 4]), sparse=True).backward(np.full((3, 2), 2.0, np.float32))
    expected = math.sqrt(sum((g.astype(float) ** 2).sum() for g in grads) + 2 * (4**2 + 2**2))
    originals = [g.copy() for g in grads]
    for p, g in zip(params, grads, strict=False):
        p.grad = g
    assert optim.clip_grad_norm([*params, table], 1e9) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(params[0].grad.numpy(), originals[0])
    assert optim.clip_grad_norm([*params, table], 0.5) == pytest.approx(expected, rel=1e-6)
    for p, g in zip(params, originals, strict=False):
        np.testing.assert_allclose(p.grad.numpy(), g * (0.5 / expected), rtol=1e-5)
    np.testing.assert_array_equal(grads[0], originals[0])  # the caller's own array
    assert isinstance(table.grad, SparseRows)
    np.testing.assert_allclose(table.grad.to_dense().numpy()[[1, 4], 0], np.array([4, 2]) * 0.5 / expected, rtol=1e-5)
    assert optim.clip_grad_norm([*params, table], 1e9) == pytest.approx(0.5, rel=1e-5)


def test_clipping_counts_shared_gradients_once_each():
    a, b = leaf(np.zeros(2)), leaf(np.zeros(2))
    shared = drupe.tensor(np.array([3.0, 4.0], np.float32))
    a.grad, b.grad = shared, shared
    assert optim.clip_grad_norm([a, b], 1.0) == pytest.approx(5 * math.sqrt(2))
    assert optim.clip_grad_norm([a, b], 10.0) == pytest.approx(1.0)


def test_clip_grad_norm_leaves_what_is_not_finite():
    a = leaf(np.zeros(2))
    a.grad = np.array([np.inf, 1.0], np.float32)
    assert optim.clip_grad_norm(a, 1.0) == np.inf
    np.testing.assert_array_equal(a.grad.numpy(), [np.inf, 1.0])
    assert optim.clip_grad_norm([], 1.0) == 0


@pytest.mark.parametrize("capturable", [False, True])
def test_small_factors_count_in_float16(capturable):
    a = leaf(np.zeros(2), np.float16)
    a.grad = np.array([30000, 40000], np.float16)
    assert float(optim.clip_grad_norm(a, 1e-3, capturable=capturable)) == pytest.approx(50000, rel=1e-3)
    assert a.grad.dtype == np.float16
    np.testing.assert_allclose(a.grad.numpy().astype(float), [6e-4, 8e-4], rtol=2e-3)


def test_clip_grad_value():
    a = leaf(np.zeros(5))
    given = np.array([-3, -0.5, 0, 0.5, np.inf], np.float32)
    a.grad = given
    optim.clip_grad_value([a], 1.0)
    np.testing.assert_array_equal(a.grad.numpy(), [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_array_equal(given[0], -3)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_clipping_limits_are_checked(bad):
    with pytest.raises(ValueError, match=r"\[clip_grad_norm\] max_norm is"):
        optim.clip_grad_norm([], bad)
    with pytest.raises(ValueError, match=r"\[clip_grad_value\] max_value is"):
        optim.clip_grad_value([], bad)


P = leaf(np.ones(3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optim.SGD([], 0.1), ValueError, r"\[SGD\] there are no parameters"),
        (lambda: optim.SGD(P, 0.1), TypeError, r"\[SGD\] params is one Tensor"),
        (lambda: optim.SGD([np.ones(3)], 0.1), TypeError, r"params\[0\] is ndarray: expected a drupe.Tensor"),
        (lambda: optim.SGD([drupe.ones((3,))], 0.1), ValueError, r"params\[0\] is no leaf that requires"),
        (lambda: optim.SGD([ops.relu(P)], 0.1), ValueError, r"params\[0\] is no leaf"),
        (lambda: optim.SGD([P, P], 0.1), ValueError, r"params\[1\] of shape \(3,\) is given twice"),
        (lambda: optim.SGD([{"params": [P]}, {"params": [P]}], 0.1), ValueError, r"given twice"),
        (lambda: optim.SGD([{"params": [P], "rate": 1}], 0.1), ValueError, r"unknown options \['rate'\]"),
        (lambda: optim.SGD([{"lr": 1}], 0.1), TypeError, r'a group is a dict with "params"'),
        (lambda: optim.SGD([P], -0.1), ValueError, r"\[SGD\] lr is -0.1: expected a finite number of at least 0"),
        (lambda: optim.SGD([P], 0.1, seed=-1), ValueError, r"\[SGD\] seed is -1: expected 0 to 2\^64 - 1"),
        (lambda: optim.Adam([P], seed=0.5), ValueError, r"\[Adam\] seed is 0.5"),
        (
            lambda: optim.Adam([P], master_weights=True, stochastic_rounding=True),
            ValueError,
            r"master_weights and stochastic_rounding exclude each other",
        ),
        (
            lambda: optim.Adam([P], capturable=True, stochastic_rounding=True),
            ValueError,
            r"\[Adam\] capturable and stochastic_rounding exclude each other",
        ),
        (lambda: optim.SGD([P], 0.1, nesterov=True), ValueError, r"nesterov needs a momentum"),
        (lambda: optim.Adam([P], math.nan), ValueError, r"\[Adam\] lr is nan"),
        (lambda: optim.Adam([P], betas=(0.9, 1.0)), ValueError, r"betas\[1\] is 1.0: expected a number in \[0, 1\)"),
        (lambda: optim.AdamW([P], weight_decay=math.inf), ValueError, r"\[AdamW\] weight_decay is inf"),
        (lambda: optim.RMSprop([P], alpha=1.5), ValueError, r"\[RMSprop\] alpha is 1.5"),
        (lambda: optim.RMSprop([P], lr="fast"), ValueError, r"lr is fast"),
    ],
)
def test_errors_name_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()


def saved():
    p = leaf(np.ones(3))
    optimizer = optim.Adam([p])
    p.grad = np.ones(3, np.float32)
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("state"), r"the state has \['param_groups'\]: expected param_groups and state"),
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "the state has 2 groups, here are 1"),
        (lambda s: s["param_groups"][0].pop("eps"), r"group 0 of the state has"),
        (lambda s: s["param_groups"][0].update(params=[0, 1]), "group 0 of the state has 2 parameters, here are 1"),
        (lambda s: s["param_groups"][0].update(lr=math.nan), "lr is nan"),
        (lambda s: s["state"].update({4: s["state"][0]}), "the state is for parameter 4, here are 1"),
        (lambda s: s["state"][0].pop("exp_avg"), r"the state of parameter 0 has \['exp_avg_sq', 'step'\]"),
        (lambda s: s["state"][0].update(exp_avg=np.ones(4, "f")), r"exp_avg of parameter 0 is float32 \(4,\)"),
        (lambda s: s["state"][0].update(exp_avg=np.ones(3)), r"exp_avg of parameter 0 is float64 \(3,\)"),
    ],
)
def test_loading_is_strict_and_all_or_nothing(change, message):
    state = saved()
    change(state)
    optimizer = optim.Adam([leaf(np.ones(3))], lr=0.5)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.state == {}
