"""Whole networks: a training step on the GPU gives the loss, the gradients and the parameters that the CPU gives."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops, optim
from drupe.models import (
    BertConfig,
    BertForMaskedLM,
    ResNet,
    ResNetConfig,
    WideDeep,
    WideDeepConfig,
)
from drupe.nn import Linear, Sequential


def bert(rng):
    config = BertConfig.tiny(
        vocab_size=50,
        max_position_embeddings=12,
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=48,
    )
    ids = rng.integers(1, 50, (3, 10))
    mask = np.arange(10) < np.array([10, 7, 4])[:, None]
    labels = np.where(rng.random((3, 10)) < 0.3, ids, -100)
    labels[0, 0] = ids[0, 0]

    def loss(model):
        logits = model(ids, attention_mask=mask)
        return ops.cross_entropy(logits.reshape((-1, 50)), labels.reshape(-1))

    return lambda: BertForMaskedLM(config), loss


def resnet(rng):
    images, labels = rng.standard_normal((4, 1, 8, 8), dtype=np.float32), rng.integers(0, 10, 4)
    return lambda: ResNet(ResNetConfig.digits()), lambda model: ops.cross_entropy(model(images), labels)


def wide_deep(rng):
    config = WideDeepConfig((5, 7, 3), numeric=2, crosses=((0, 1),), embedding_size=4, hidden=(16, 8))
    x = {
        "categorical": np.stack([rng.integers(0, n, 20) for n in (5, 7, 3)], axis=1),
        "numeric": rng.standard_normal((20, 2), dtype=np.float32),
    }
    y = rng.integers(0, 2, 20).astype(np.float32)
    return lambda: WideDeep(config), lambda model: ops.bce_with_logits(model(**x), y)


@pytest.mark.parametrize("network", [bert, resnet, wide_deep])
def test_a_training_step_equals_the_cpus(rng, network):
    make, loss_of = network(rng)
    losses, gradients, parameters = [], [], []
    for device in ("cpu", "cuda"):
        drupe.manual_seed(3)
        model = make().train().to(device)
        assert model.device.startswith(device)
        optimizer = optim.AdamW(model.parameters(), lr=1e-3)
        loss = loss_of(model)
        assert loss.device == model.device
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        dense = {n: g.to_dense() if isinstance(g, drupe.SparseRows) else g for n, g in grads.items()}
        optimizer.step()
        losses.append(loss.item())
        gradients.append({name: g.numpy() for name, g in dense.items()})
        parameters.append({name: p.detach().numpy() for name, p in model.named_parameters()})
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 5
    # Some gradients are zero but for rounding, as that of a bias of keys.
    largest = max(np.abs(g).max() for g in gradients[0].values())
    for name, expected in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], expected, rtol=1e-3, atol=1e-5 * largest, err_msg=name)
    for name, expected in parameters[0].items():
        # Adam's first step is lr sign(g) where g is far from 0: tiny gradients may differ in sign.
        np.testing.assert_allclose(parameters[1][name], expected, rtol=0, atol=2.1e-3, err_msg=name)


def test_fit_and_predict_run_where_the_model_is(rng):
    x = rng.standard_normal((40, 1, 8, 8), dtype=np.float32)
    y = rng.integers(0, 10, 40)
    losses = []
    for device in ("cpu", "cuda"):
        drupe.manual_seed(1)
        model = ResNet(ResNetConfig.digits()).to(device)
        history = model.fit(x[:16], y[:16], epochs=1, batch_size=8, validation_data=(x[16:24], y[16:24]), verbose=0)
        assert model.device.startswith(device)
        logits = model.predict(x[24:32])
        assert isinstance(logits, np.ndarray)
        losses.append([*history.steps, history["val_loss"][-1], float(np.abs(logits).mean())])
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2)


def test_state_moves_between_devices(rng):
    network = Sequential(Linear(5, 7, activation="relu"), Linear(7, 3)).to("cuda")
    twin = Sequential(Linear(5, 7, activation="relu"), Linear(7, 3))
    twin.load_state_dict(network.state_dict())
    x = rng.standard_normal((4, 5), dtype=np.float32)
    with drupe.no_grad():
        np.testing.assert_allclose(network(x).numpy(), twin(drupe.tensor(x)).numpy(), rtol=1e-5, atol=1e-6)
    network.load_state_dict(twin.state_dict())
    assert network.device.startswith("cuda")
    assert network.to("cpu").device == "cpu"
