from __future__ import annotations

import numpy as np
import pytest

import drupe
from column_cases import COLUMN_ERRORS, check_hashing
from drupe import ops, optim
from drupe.models import DeepFM, DeepFMConfig

CONFIG = DeepFMConfig((3, 5, 2), numeric=2, embedding_size=4, hidden=(8, 6))


def make(**changes):
    drupe.manual_seed(2)
    return DeepFM(DeepFMConfig(**{**CONFIG.__dict__, **changes}))


@pytest.fixture
def batch(rng):
    codes = np.stack([rng.integers(0, size, 20) for size in CONFIG.cardinalities], axis=1)
    return {"categorical": codes, "numeric": rng.standard_normal((20, 2)).astype(np.float32)}


def reference(state, config, categorical, numeric):
    """The formula, one example and one pair of fields after another, in float64."""
    state = {name: np.asarray(value).astype(np.float64) for name, value in state.items()}
    starts = np.cumsum((0, *config.cardinalities[:-1]))
    logits = []
    for codes, numbers in zip(categorical, numeric, strict=True):
        logit = state["first.weight"][starts + codes, 0].sum()
        vectors = [state["embedding.weight"][row] for row in starts + codes]
        if config.numeric:
            logit += state["first_numeric.weight"][0] @ numbers
            vectors += [x * v for x, v in zip(numbers, state["embedding_numeric"], strict=True)]
        logit += sum(vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i))
        deep = np.concatenate(vectors)
        for i in range(len(config.hidden)):
            deep = np.maximum(state[f"layers.{i}.weight"] @ deep + state[f"layers.{i}.bias"], 0)
        logits.append(logit + (state["head.weight"] @ deep + state["head.bias"])[0])
    return np.array(logits)


@pytest.mark.parametrize("changes", [{}, {"hidden": ()}, {"embedding_size": 1}], ids=str)
def test_logits_are_the_formulas(rng, batch, changes):
    model = make(**changes)
    for parameter in model.parameters():
        parameter.copy_from(rng.standard_normal(parameter.shape).astype(np.float32))
    expected = reference(model.state_dict(), model.config, **batch)
    np.testing.assert_allclose(model.predict(batch), expected, rtol=1e-5, atol=2e-5)


def test_categories_alone_suffice(rng, batch):
    model = make(numeric=0)
    expected = reference(model.state_dict(), model.config, batch["categorical"], np.zeros((20, 0)))
    np.testing.assert_allclose(model.predict(batch["categorical"]), expected, rtol=1e-5, atol=1e-5)


def test_names_and_shapes():
    assert {name: value.shape for name, value in make().state_dict().items()} == {
        "first.weight": (3 + 5 + 2, 1),
        "embedding.weight": (3 + 5 + 2, 4),
        "first_numeric.weight": (1, 2),
        "embedding_numeric": (2, 4),
        "layers.0.weight": (8, 20),
        "layers.0.bias": (8,),
        "layers.1.weight": (6, 8),
        "layers.1.bias": (6,),
        "head.weight": (1, 6),
        "head.bias": (1,),
    }


def test_gradients_are_finite_differences(rng, batch):
    model = make().astype("float64")
    target = rng.integers(0, 2, 20).astype(np.float64)
    numeric = batch["numeric"].astype(np.float64)
    ops.bce_with_logits(model(batch["categorical"], numeric), target).backward()

    def loss():
        with drupe.no_grad():
            return float(ops.bce_with_logits(model(batch["categorical"], numeric), target).item())

    step = 1e-6
    for name, parameter in model.named_parameters():
        values, grad = parameter.detach().numpy(), parameter.grad.numpy()
        for place in list(np.ndindex(values.shape))[:12]:
            kept, found = values[place], []
            for sign in (1, -1):
                values[place] = kept + sign * step
                found.append(loss())
            values[place] = kept
            assert abs((found[0] - found[1]) / (2 * step) - grad[place]) < 1e-7, (name, place)


def test_sparse_gradients_are_the_dense_ones(rng, batch):
    target = rng.integers(0, 2, 20).astype(np.float32)
    grads = []
    for sparse in (False, True):
        model = make(sparse=sparse)
        ops.bce_with_logits(model(**batch), target).backward()
        grads.append([model.first.weight.grad, model.embedding.weight.grad])
    for dense, rows in zip(*grads, strict=True):
        assert isinstance(rows, drupe.SparseRows)
        np.testing.assert_allclose(rows.to_dense().numpy(), dense.numpy(), rtol=1e-5, atol=1e-7)


def test_sparse_steps_leave_other_rows_alone(rng, batch):
    model = make(sparse=True)
    before = model.embedding.weight.detach().numpy().copy()
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    batch["categorical"][:, 1] = 2
    ops.bce_with_logits(model(**batch), rng.integers(0, 2, 20).astype(np.float32)).backward()
    optimizer.step()
    changed = np.flatnonzero((model.embedding.weight.detach().numpy() != before).any(axis=1))
    assert set(changed) == set(np.unique(model.rows(batch["categorical"], batch["numeric"])))


def test_learns_an_interaction_that_no_linear_model_can(rng):
    """The sign of a product of two columns' hidden numbers: neither column tells anything alone."""
    codes = rng.integers(0, 6, (400, 2))
    hidden = np.array([-1, 1, -1, 1, 1, -1])
    target = (hidden[codes[:, 0]] * hidden[codes[:, 1]] > 0).astype(np.int64)
    linear = np.concatenate([np.eye(6)[codes[:, 0]], np.eye(6)[codes[:, 1]]], axis=1)
    fitted = linear @ np.linalg.lstsq(linear, 2.0 * target - 1, rcond=None)[0]
    assert ((fitted > 0) == target).mean() < 0.75
    drupe.manual_seed(1)
    model = DeepFM(DeepFMConfig((6, 6), embedding_size=4, hidden=()))  # without a deep part: by the second order
    history = model.fit(codes, target, epochs=25, batch_size=50, optimizer="adam", learning_rate=0.05)
    assert history["loss"][-1] < 0.1 < history["loss"][0]
    assert model.evaluate(codes, target)["accuracy"] == 1


def test_save_and_load_give_the_same_logits(batch, tmp_path):
    model = make()
    model.save(tmp_path / "model.safetensors")
    drupe.manual_seed(9)
    other = DeepFM(CONFIG)
    assert not np.array_equal(model.predict(batch), other.predict(batch))
    other.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(model.predict(batch), other.predict(batch))


@pytest.mark.skipif(not drupe.cuda_status()["available"], reason="no GPU, real or emulated")
@pytest.mark.parametrize("sparse", [False, True])
def test_cuda_trains_as_the_cpu_does(rng, batch, sparse):
    target = rng.integers(0, 2, 20).astype(np.float32)
    losses = []
    for device in ("cpu", "cuda"):
        model = make(sparse=sparse).to(device)
        history = model.fit(batch, target, epochs=2, batch_size=10, optimizer="adam", learning_rate=0.05)
        losses.append(history.steps)
        logits = model.predict(batch)
        np.testing.assert_allclose(logits, reference(model.state_dict(), CONFIG, **batch), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_hashes_categories_of_any_value(rng, batch):
    check_hashing(rng, make, batch)


@pytest.mark.parametrize(("change", "error", "message"), COLUMN_ERRORS)
def test_errors(batch, change, error, message):
    with pytest.raises(error, match=message):
        make()(**{**batch, **change})


def test_config_errors():
    with pytest.raises(ValueError, match="cardinalities is"):
        DeepFMConfig(())
    for options in ({"numeric": -1}, {"embedding_size": 0}, {"hidden": (4, 0)}):
        with pytest.raises(ValueError, match="must not be negative"):
            DeepFMConfig((2, 2), **options)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="hash_seed is"):
            DeepFMConfig((2, 2), hash_seed=seed)
