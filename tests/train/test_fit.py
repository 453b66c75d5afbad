from __future__ import annotations

import contextlib
import io as textio
import sys

import numpy as np
import pytest

import drupe
from drupe import nn, ops, optim
from drupe.data import batches
from drupe.train import Callback, Model, PrintEpochs, ProgressBar


class Network(Model):
    """Two layers with dropout between them."""

    def __init__(self, features=4, classes=3, dropout=0.2):
        self.first = nn.Linear(features, 16, activation="relu")
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(16, classes)

    def forward(self, x):
        return self.last(self.dropout(self.first(x)))


class Line(Model):
    default_loss = "mse"

    def __init__(self):
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x)


class Pair(Model):
    def __init__(self):
        self.layer = nn.Linear(4, 2)

    def forward(self, left, right):
        return self.layer(ops.concat([left, right], axis=1))


def make(**options):
    drupe.manual_seed(1)
    return Network(**options)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4)).astype(np.float32)
    return x, x[:, :3].argmax(axis=1)


def state(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def test_learns_and_reports(data):
    x, y = data
    model = make()
    history = model.fit(x[:40], y[:40], epochs=40, batch_size=16, learning_rate=0.02, validation_data=(x[40:], y[40:]))
    assert len(history) == 40
    assert len(history.steps) == 40 * 3
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert history["val_accuracy"][-1] > 0.8
    assert history.final["val_loss"] == history["val_loss"][-1]
    assert model.evaluate(x[40:], y[40:]) == {
        "loss": pytest.approx(history["val_loss"][-1]),
        "accuracy": history["val_accuracy"][-1],
    }


def test_evaluate_and_predict_are_numpys(data):
    x, y = data
    model = make()
    weights = state(model)
    hidden = np.maximum(x @ weights["first.weight"].T + weights["first.bias"], 0)
    logits = hidden @ weights["last.weight"].T + weights["last.bias"]
    np.testing.assert_allclose(model.predict(x, batch_size=7), logits, rtol=1e-4, atol=1e-5)
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    numbers = model.evaluate(x, y, batch_size=7)
    assert numbers["loss"] == pytest.approx(-np.log(odds[np.arange(60), y]).mean(), rel=1e-5)
    assert numbers["accuracy"] == pytest.approx((logits.argmax(axis=1) == y).mean())
    assert model.training, "evaluation must leave the mode as it was"


def test_the_same_seed_gives_the_same_bits(data):
    x, y = data
    results = []
    threads = drupe.num_threads()
    try:
        for seed, count in ((0, 1), (0, 3), (1, 1)):
            drupe.set_num_threads(count)
            model = make()
            history = model.fit(x, y, epochs=3, batch_size=16, seed=seed)
            results.append((history.steps, state(model)))
    finally:
        drupe.set_num_threads(threads)
    assert results[0][0] == results[1][0]
    assert_same(results[0][1], results[1][1])
    assert results[0][0] != results[2][0]


@pytest.mark.parametrize("stop", [None, StopIteration, KeyboardInterrupt])
def test_the_global_generator_is_as_if_nothing_had_been_trained(data, stop):
    class Stop(Callback):
        def on_epoch_end(self, epoch, logs):
            if stop:
                raise stop

    model = make()
    drupe.manual_seed(7)
    drupe.random.normal((3,))
    expected = drupe.random.normal((5,)).numpy()
    drupe.manual_seed(7)
    drupe.random.normal((3,))
    with contextlib.nullcontext() if stop is not KeyboardInterrupt else pytest.raises(KeyboardInterrupt):
        model.fit(*data, epochs=2, callbacks=[Stop()])
    np.testing.assert_array_equal(drupe.random.normal((5,)).numpy(), expected)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop"])
def test_training_resumes_bit_for_bit(data, tmp_path, optimizer):
    x, y = data
    path = tmp_path / "run.safetensors"
    options = {
        "epochs": 4,
        "batch_size": 16,
        "optimizer": optimizer,
        "schedule": "cosine",
        "warmup": 0.2,
        "weight_decay": 0.01,
        "max_grad_norm": 0.5,
    }
    whole = make()
    history = whole.fit(x, y, **options)

    class Stop(Callback):
        def on_epoch_end(self, epoch, logs):
            if epoch == 1:
                raise KeyboardInterrupt

    half = make()
    with pytest.raises(KeyboardInterrupt):
        half.fit(x, y, **options, checkpoint=path, callbacks=[Stop()])
    drupe.manual_seed(99)
    rest = Network()
    resumed = rest.fit(x, y, **options, checkpoint=path, resume=True)
    assert resumed.steps == history.steps
    assert resumed["loss"] == history["loss"]
    assert_same(state(rest), state(whole))


def test_a_run_that_is_complete_is_not_repeated(data, tmp_path):
    x, y = data
    path = tmp_path / "run.safetensors"
    model = make()
    model.fit(x, y, epochs=2, checkpoint=path)
    before = state(model)
    history = model.fit(x, y, epochs=2, checkpoint=path, resume=True)
    assert len(history) == 2
    assert_same(state(model), before)


def test_inputs_may_be_tuples_and_dicts(data):
    x, y = data
    y = (y > 0).astype(np.int64)
    results = []
    for inputs in ((x[:, :2], x[:, 2:]), {"right": x[:, 2:], "left": x[:, :2]}):
        drupe.manual_seed(1)
        model = Pair()
        model.fit(inputs, y, epochs=2)
        results.append(state(model))
    assert_same(*results)


def test_linear_regression_finds_the_line(rng):
    x = rng.standard_normal((200, 2)).astype(np.float32)
    y = x @ np.array([[2.0], [-1.0]], np.float32) + 0.5
    drupe.manual_seed(0)
    model = Line()
    history = model.fit(x, y, epochs=60, optimizer="sgd", learning_rate=0.01)
    np.testing.assert_allclose(model.layer.weight.detach().numpy(), [[2, -1]], atol=1e-3)
    np.testing.assert_allclose(model.layer.bias.detach().numpy(), [0.5], atol=1e-3)
    assert history["mean_absolute_error"][-1] < 1e-2


def test_a_source_is_asked_once_per_epoch(data):
    x, y = data

    class Source:
        def __init__(self):
            self.drawn = []

        def __len__(self):
            return 20

        def sample(self, rng):
            rows = rng.permutation(60)[:20]
            self.drawn.append(rows.tolist())
            return x[rows], y[rows]

    sources = [Source(), Source()]
    for source in sources:
        assert len(make().fit(source, epochs=3, batch_size=8).steps) == 9
    assert sources[0].drawn == sources[1].drawn
    assert len({tuple(rows) for rows in sources[0].drawn}) == 3


def test_schedules_move_the_learning_rate(data):
    x, y = data

    class Watch(Callback):
        def __init__(self):
            self.rates = []

        def on_step(self, info):
            self.rates.append(info.learning_rate)

    watch = Watch()
    optimizer = optim.SGD(list((model := make()).parameters()), lr=0.1)
    model.fit(x, y, epochs=2, batch_size=6, optimizer=optimizer, schedule="linear", warmup=0.25, callbacks=[watch])
    np.testing.assert_allclose(watch.rates[:5], [0.02, 0.04, 0.06, 0.08, 0.1])
    assert np.all(np.diff(watch.rates[5:]) < 0)
    assert optimizer.param_groups[0]["lr"] == 0.1, "the rate must be as it was"

    watch = Watch()
    make().fit(x, y, batch_size=30, learning_rate=1.0, schedule=lambda step: 0.5**step, callbacks=[watch])
    assert watch.rates == [1.0, 0.5]


def test_clipping_limits_the_step(data):
    x, y = data
    model = make()
    before = state(model)
    model.fit(100 * x, y, batch_size=60, optimizer=optim.SGD(model.parameters(), lr=1.0), max_grad_norm=0.01)
    moved = sum(float(((state(model)[name] - value) ** 2).sum()) for name, value in before.items())
    assert np.sqrt(moved) == pytest.approx(0.01, rel=1e-3)


def test_decay_spares_biases():
    model = make()
    groups = model.parameter_groups(0.1)
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [(0.1, [2, 2]), (0.0, [1, 1])]


def test_frozen_parameters_stay(data):
    x, y = data
    model = make()
    model.first.requires_grad_(False)
    before = state(model)
    model.fit(x, y)
    after = state(model)
    np.testing.assert_array_equal(after["first.weight"], before["first.weight"])
    assert not np.array_equal(after["last.weight"], before["last.weight"])


def test_a_callback_may_stop_the_run(data):
    x, y = data

    class Stop(Callback):
        ended = 0

        def on_epoch_end(self, epoch, logs):
            if epoch == 2:
                raise StopIteration

        def on_train_end(self):
            self.ended += 1

    stop = Stop()
    assert len(make().fit(x, y, epochs=10, callbacks=[stop])) == 3
    assert stop.ended == 1


def test_a_loss_that_is_not_finite_stops_before_the_step(data):
    x, y = data
    model = make()
    before = state(model)
    x = x.copy()
    x[:, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"loss became nan in epoch 1, step 1"):
        model.fit(x, y)
    assert_same(state(model), before)


def test_custom_losses(data):
    x, y = data
    model = make()
    history = model.fit(
        x, y, epochs=20, learning_rate=0.02, loss=lambda output, target: ops.cross_entropy(output, target)
    )
    assert set(history.epochs) == {"loss", "learning_rate", "seconds"}
    assert history["loss"][-1] < history["loss"][0]


def test_the_explicit_loop(data):
    x, y = data
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        for inputs, target in batches(x, y, batch_size=16, shuffle=True):
            loss = ops.cross_entropy(model(inputs), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_progress(data):
    console = pytest.importorskip("rich.console")
    x, y = data
    out = textio.StringIO()
    bar = ProgressBar("a network", console.Console(file=out, width=120, force_terminal=False))
    make().fit(x, y, epochs=2, validation_data=(x, y), callbacks=[bar])
    assert "a network" in out.getvalue()
    assert "100%" in out.getvalue()
    assert "validation 0." in out.getvalue()
    lines = textio.StringIO()
    make().fit(x, y, epochs=2, callbacks=[PrintEpochs(lines)])
    assert lines.getvalue().startswith("epoch 1/2  loss ")
    assert len(lines.getvalue().splitlines()) == 2


def test_the_progress_bar_names_its_extra(monkeypatch, data):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r"pip install 'drupe\[cli\]'"):
        make().fit(*data, verbose=1)


X, Y = np.zeros((6, 4), np.float32), np.zeros(6, np.int64)


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (X, Y[:5], {}, ValueError, r"\[fit\] lengths differ: x \(6, 4\), y \(5,\)"),
        (X[:0], Y[:0], {}, ValueError, r"\[fit\] the data is empty"),
        (X, None, {}, ValueError, "y is missing"),
        (X, Y.astype(np.float32), {}, TypeError, "y is float32: expected integers"),
        (X, Y + 3, {}, IndexError, "3"),
        (X, Y, {"loss": "hinge"}, ValueError, 'loss is "hinge"'),
        (X, Y, {"optimizer": "lion"}, ValueError, 'optimizer is "lion"'),
        (X, Y, {"optimizer": 3}, TypeError, "optimizer is int"),
        (X, Y, {"schedule": "wavy"}, ValueError, 'schedule is "wavy"'),
        (X, Y, {"learning_rate": float("nan")}, ValueError, "learning_rate is nan"),
        (X, Y, {"learning_rate": -1}, ValueError, "learning_rate is -1"),
        (X, Y, {"weight_decay": float("inf")}, ValueError, "weight_decay is inf"),
        (X, Y, {"warmup": 2}, ValueError, "warmup is 2"),
        (X, Y, {"max_grad_norm": 0}, ValueError, "max_grad_norm is 0"),
        (X, Y, {"epochs": -1}, ValueError, "epochs is -1"),
        (X, Y, {"batch_size": 0}, ValueError, "batch_size is 0"),
        (X, Y, {"verbose": 3}, ValueError, "verbose is 3"),
        (X, Y, {"resume": True}, ValueError, "resume=True needs"),
        (X, Y, {"validation_data": (X, Y[:2])}, ValueError, r"validation_data\] lengths differ"),
    ],
)
def test_errors(x, y, options, error, message):
    with pytest.raises(error, match=message):
        make().fit(x, y, **options)


def test_nothing_to_train():
    model = make().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameters to train"):
        model.fit(X, Y)
