from __future__ import annotations

import numpy as np
import pytest

import drupe
from column_cases import COLUMN_ERRORS, check_hashing
from drupe import ops
from drupe.models import WideDeep, WideDeepConfig

CONFIG = WideDeepConfig((3, 5, 2), numeric=2, crosses=((0, 1), (0, 1, 2)), embedding_size=4, hidden=(8, 6))


def make(**changes):
    drupe.manual_seed(2)
    return WideDeep(WideDeepConfig(**{**CONFIG.__dict__, **changes}))


@pytest.fixture
def batch(rng):
    codes = np.stack([rng.integers(0, size, 20) for size in CONFIG.cardinalities], axis=1)
    return {"categorical": codes, "numeric": rng.standard_normal((20, 2)).astype(np.float32)}


def reference(state, config, categorical, numeric):
    """The formula, one example after another, in float64."""
    state = {name: value.numpy().astype(np.float64) for name, value in state.items()}
    logits = []
    for codes, numbers in zip(categorical, numeric, strict=True):
        wide, start = float(state["bias"][0]), 0
        for code, size in zip(codes, config.cardinalities, strict=True):
            wide += state["wide.weight"][start + code, 0]
            start += size
        for cross in config.crosses:
            sizes = [config.cardinalities[i] for i in cross]
            index = int(np.ravel_multi_index([codes[i] for i in cross], sizes))
            wide += state["wide.weight"][start + index % config.cross_buckets, 0]
            start += min(int(np.prod(sizes)), config.cross_buckets)
        wide += state["wide_numeric.weight"][0] @ numbers
        deep = np.concatenate([*(state[f"embeddings.{i}.weight"][code] for i, code in enumerate(codes)), numbers])
        for i in range(len(config.hidden)):
            deep = np.maximum(state[f"layers.{i}.weight"] @ deep + state[f"layers.{i}.bias"], 0)
        logits.append(wide + float((state["head.weight"] @ deep + state["head.bias"])[0]))
    return np.array(logits)


@pytest.mark.parametrize("changes", [{}, {"cross_buckets": 7}], ids=str)
def test_logits_are_the_formulas(rng, batch, changes):
    model = make(**changes)
    model.wide.weight.copy_from(rng.standard_normal(model.wide.weight.shape).astype(np.float32))
    expected = reference(model.state_dict(), model.config, **batch)
    np.testing.assert_allclose(model.predict(batch), expected, rtol=1e-5, atol=1e-5)


def test_names_and_shapes():
    assert {name: value.shape for name, value in make().state_dict().items()} == {
        "wide.weight": (3 + 5 + 2 + 15 + 30, 1),
        "wide_numeric.weight": (1, 2),
        "bias": (1,),
        "embeddings.0.weight": (3, 4),
        "embeddings.1.weight": (5, 4),
        "embeddings.2.weight": (2, 4),
        "layers.0.weight": (8, 14),
        "layers.0.bias": (8,),
        "layers.1.weight": (6, 8),
        "layers.1.bias": (6,),
        "head.weight": (1, 6),
        "head.bias": (1,),
    }


def test_every_parameter_gets_a_gradient(rng, batch):
    model = make()
    ops.bce_with_logits(model(**batch), rng.integers(0, 2, 20).astype(np.float32)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert np.abs(parameter.grad.numpy()).max() > 0, name


def test_sparse_gradients_are_the_dense_ones(rng, batch):
    target = rng.integers(0, 2, 20).astype(np.float32)
    grads = []
    for sparse in (False, True):
        model = make(sparse=sparse)
        ops.bce_with_logits(model(**batch), target).backward()
        grads.append([model.wide.weight.grad, model.embeddings[1].weight.grad])
    for dense, rows in zip(*grads, strict=True):
        assert isinstance(rows, drupe.SparseRows)
        full = np.zeros(rows.shape, np.float32)
        full[drupe.Tensor(rows.indices).numpy()] = drupe.Tensor(rows.values).numpy()
        np.testing.assert_allclose(full, dense.numpy(), rtol=1e-5, atol=1e-7)


def test_learns_a_cross(batch):
    """Exclusive or of two columns, of which neither tells anything alone."""
    codes = batch["categorical"]
    target = ((codes[:, 0] == 1) ^ (codes[:, 2] == 1)).astype(np.int64)
    model = make()
    history = model.fit(batch, target, epochs=80, batch_size=20, learning_rate=0.02)
    assert history["loss"][-1] < 0.1 < history["loss"][0]
    assert model.evaluate(batch, target)["accuracy"] == 1


def test_save_and_load_give_the_same_logits(batch, tmp_path):
    model = make()
    model.save(tmp_path / "model.safetensors")
    drupe.manual_seed(9)
    other = WideDeep(CONFIG)
    assert not np.array_equal(model.predict(batch), other.predict(batch))
    other.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(model.predict(batch), other.predict(batch))


def test_categories_alone_suffice(batch):
    assert make(numeric=0).predict(batch["categorical"]).shape == (20,)


def test_hashes_categories_of_any_value(rng, batch):
    check_hashing(rng, make, batch)


@pytest.mark.parametrize(("change", "error", "message"), COLUMN_ERRORS)
def test_errors(batch, change, error, message):
    with pytest.raises(error, match=message):
        make()(**{**batch, **change})


def test_config_errors():
    with pytest.raises(ValueError, match="cardinalities is"):
        WideDeepConfig(())
    with pytest.raises(ValueError, match=r"cross \(0, 3\)"):
        WideDeepConfig((2, 2), crosses=((0, 3),))
    with pytest.raises(ValueError, match="must not be negative"):
        WideDeepConfig((2, 2), numeric=-1)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="hash_seed is"):
            WideDeepConfig((2, 2), hash_seed=seed)
