from __future__ import annotations

import math

import numpy as np
import pytest

import drupe
from drupe import optim, schedules


def sgd(*rates):
    groups = [{"params": [drupe.tensor(np.ones(2, np.float32), requires_grad=True)], "lr": lr} for lr in rates]
    return optim.SGD(groups, lr=1.0)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def test_constant():
    assert [schedules.constant()(i) for i in (0, 1, 1000)] == [1, 1, 1]
    assert schedules.constant(0.5)(7) == 0.5


def test_step():
    schedule = schedules.step(3, gamma=0.5)
    assert [schedule(i) for i in range(8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_linear():
    schedule = schedules.linear(4, end=0.2)
    np.testing.assert_allclose([schedule(i) for i in range(6)], [1, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_cosine():
    schedule = schedules.cosine(10)
    assert schedule(0) == 1
    assert schedule(5) == pytest.approx(0.5)
    assert schedule(10) == pytest.approx(0, abs=1e-15)
    assert schedule(99) == schedule(10)
    raised = schedules.cosine(10, end=0.2)
    for i in range(11):
        assert raised(i) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * i / 10)) / 2)


def test_warmup_leads_into_what_follows():
    schedule = schedules.warmup(4, schedules.cosine(10))
    np.testing.assert_allclose([schedule(i) for i in range(5)], [0.25, 0.5, 0.75, 1, 1])
    for i in range(10):
        assert schedule(4 + i) == schedules.cosine(10)(i)
    assert schedules.warmup(2)(50) == 1
    nested = schedules.warmup(2, schedules.warmup(2, schedules.constant(8.0)))
    assert [nested(i) for i in range(5)] == [2, 4, 4, 8, 8]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.step(0), r"\[step\] size is 0: expected at least 1"),
        (lambda: schedules.step(3, math.nan), r"\[step\] gamma is nan"),
        (lambda: schedules.cosine(-1), r"\[cosine\] steps is -1"),
        (lambda: schedules.cosine(5, math.inf), r"\[cosine\] end is inf"),
        (lambda: schedules.linear(0), r"\[linear\] steps is 0"),
        (lambda: schedules.warmup(0), r"\[warmup\] steps is 0"),
        (lambda: schedules.constant(-1.0), r"\[constant\] factor is -1.0"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_scheduler_sets_every_groups_rate():
    optimizer = sgd(1.0, 0.1)
    scheduler = schedules.Scheduler(optimizer, schedules.warmup(2, schedules.step(1, 0.5)))
    seen = [rates(optimizer)]
    for _ in range(4):
        optimizer.step()
        scheduler.step()
        seen.append(rates(optimizer))
    np.testing.assert_allclose(seen, [[0.5, 0.05], [1, 0.1], [1, 0.1], [0.5, 0.05], [0.25, 0.025]])
    assert scheduler.factor == 0.25


def test_scheduler_takes_any_function_and_later_groups():
    optimizer = sgd(1.0)
    scheduler = schedules.Scheduler(optimizer, lambda step: 1 / (1 + step))
    optimizer.add_param_group({"params": [drupe.tensor(np.ones(1), requires_grad=True)], "lr": 4.0})
    scheduler.step()
    assert rates(optimizer) == [0.5, 2.0]


def test_scheduler_goes_on_from_its_state():
    first, second = sgd(1.0, 0.5), sgd(3.0, 3.0)
    one = schedules.Scheduler(first, schedules.cosine(7))
    for _ in range(3):
        one.step()
    other = schedules.Scheduler(second, schedules.cosine(7))
    other.load_state_dict(one.state_dict())
    assert rates(first) == rates(second)
    one.step()
    other.step()
    assert rates(first) == rates(second)
    assert one.state_dict() == other.state_dict()


def test_scheduler_state_is_checked():
    scheduler = schedules.Scheduler(sgd(1.0), schedules.constant())
    with pytest.raises(ValueError, match=r"the state has \['steps_done'\]: expected base_lrs and steps_done"):
        scheduler.load_state_dict({"steps_done": 1})
    with pytest.raises(ValueError, match="the state has 2 groups, the optimizer 1"):
        scheduler.load_state_dict({"steps_done": 1, "base_lrs": [1.0, 2.0]})
