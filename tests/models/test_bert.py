from __future__ import annotations

import json

import numpy as np
import pytest

import drupe
from drupe import io, ops
from drupe.models import BertConfig, BertForMaskedLM, BertForSequenceClassification

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=12,
    num_labels=3,
)

# What transformers' state_dict() lists for these sizes.
LAYER = {
    "attention.self.query.weight": (16, 16),
    "attention.self.query.bias": (16,),
    "attention.self.key.weight": (16, 16),
    "attention.self.key.bias": (16,),
    "attention.self.value.weight": (16, 16),
    "attention.self.value.bias": (16,),
    "attention.output.dense.weight": (16, 16),
    "attention.output.dense.bias": (16,),
    "attention.output.LayerNorm.weight": (16,),
    "attention.output.LayerNorm.bias": (16,),
    "intermediate.dense.weight": (32, 16),
    "intermediate.dense.bias": (32,),
    "output.dense.weight": (16, 32),
    "output.dense.bias": (16,),
    "output.LayerNorm.weight": (16,),
    "output.LayerNorm.bias": (16,),
}
ENCODER = {
    "bert.embeddings.word_embeddings.weight": (50, 16),
    "bert.embeddings.position_embeddings.weight": (12, 16),
    "bert.embeddings.token_type_embeddings.weight": (2, 16),
    "bert.embeddings.LayerNorm.weight": (16,),
    "bert.embeddings.LayerNorm.bias": (16,),
    **{f"bert.encoder.layer.0.{name}": shape for name, shape in LAYER.items()},
    **{f"bert.encoder.layer.1.{name}": shape for name, shape in LAYER.items()},
}
MASKED_LM = {
    **ENCODER,
    "cls.predictions.bias": (50,),
    "cls.predictions.transform.dense.weight": (16, 16),
    "cls.predictions.transform.dense.bias": (16,),
    "cls.predictions.transform.LayerNorm.weight": (16,),
    "cls.predictions.transform.LayerNorm.bias": (16,),
    "cls.predictions.decoder.weight": (50, 16),
    "cls.predictions.decoder.bias": (50,),
}
CLASSIFIER = {
    **ENCODER,
    "bert.pooler.dense.weight": (16, 16),
    "bert.pooler.dense.bias": (16,),
    "classifier.weight": (3, 16),
    "classifier.bias": (3,),
}
KINDS = [BertForMaskedLM, BertForSequenceClassification]


@pytest.fixture
def batch(rng):
    ids = rng.integers(5, 50, (6, 10))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    mask[4, 3:] = 0
    return {"input_ids": np.where(mask, ids, 0), "attention_mask": mask}


def masked(rng, batch):
    positions = rng.integers(1, 3, (6, 2))
    return {**batch, "masked_positions": positions}, np.take_along_axis(batch["input_ids"], positions, axis=1)


def make(kind, **changes):
    drupe.manual_seed(5)
    return kind(BertConfig(**{**CONFIG.__dict__, **changes}))


@pytest.mark.parametrize(("kind", "names"), list(zip(KINDS, [MASKED_LM, CLASSIFIER], strict=True)))
def test_names_and_shapes_are_hugging_faces(kind, names):
    assert {name: value.shape for name, value in make(kind).state_dict().items()} == names


def test_the_default_is_bert_base():
    """As many parameters as bert-base-uncased has with its pooler, counted on one layer of it."""
    model = BertForSequenceClassification(BertConfig.base(num_hidden_layers=1))
    sizes = {name: value.size for name, value in model.state_dict().items()}
    layer = sum(size for name, size in sizes.items() if ".layer.0." in name)
    rest = sum(size for name, size in sizes.items() if ".layer." not in name and "classifier" not in name)
    assert rest + 12 * layer == 109_482_240
    assert BertConfig.base().num_hidden_layers == 12


def test_input_and_output_embeddings_are_one_parameter():
    model = make(BertForMaskedLM)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert len(list(model.parameters())) == len(MASKED_LM) - 2


def test_masked_positions_select_from_all_logits(batch, rng):
    model = make(BertForMaskedLM)
    inputs, _ = masked(rng, batch)
    every = model.predict(batch)
    assert every.shape == (6, 10, 50)
    expected = np.take_along_axis(every, inputs["masked_positions"][..., None], axis=1)
    np.testing.assert_allclose(model.predict(inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind, batch, rng):
    model = make(kind)
    target = rng.integers(0, 3, 6)
    if kind is BertForMaskedLM:
        batch, target = masked(rng, batch)
    output = model(**batch)
    ops.cross_entropy(output.reshape((-1, output.shape[-1])), target.reshape(-1)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad.numpy()
        assert np.isfinite(grad).all(), name
        # The key's bias shifts all logits of a row alike, which softmax does not see.
        if not name.endswith("key.bias"):
            assert np.abs(grad).max() > 0, name


def test_padding_does_not_matter(rng):
    model = make(BertForSequenceClassification)
    ids = rng.integers(5, 50, (3, 6))
    padded = np.concatenate([ids, rng.integers(5, 50, (3, 4))], axis=1)
    mask = np.arange(10) < np.full((3, 1), 6)
    actual = model.predict({"input_ids": padded, "attention_mask": mask.astype(np.int64)})
    np.testing.assert_allclose(actual, model.predict(ids), rtol=1e-5, atol=1e-6)


def test_a_mask_may_have_holes(rng):
    model = make(BertForMaskedLM)
    ids = rng.integers(5, 50, (2, 8))
    other = ids.copy()
    other[:, 3] = (ids[:, 3] - 4) % 45 + 5
    mask = np.ones((2, 8), np.int64)
    mask[:, 3] = 0
    keep = [0, 1, 2, 4, 5, 6, 7]
    a, b = (model.predict({"input_ids": x, "attention_mask": mask})[:, keep] for x in (ids, other))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert np.abs(model.predict(ids)[:, keep] - model.predict(other)[:, keep]).max() > 1e-5


def test_overfits_one_batch(batch, rng):
    model = make(BertForSequenceClassification, hidden_dropout_prob=0.0)
    target = rng.integers(0, 3, 6)
    history = model.fit(batch, target, epochs=60, batch_size=6, learning_rate=5e-3)
    assert history["loss"][0] > 0.5
    assert history["loss"][-1] < 0.05
    assert model.evaluate(batch, target)["accuracy"] == 1


def test_masked_language_model_learns(batch, rng):
    model = make(BertForMaskedLM)
    inputs, labels = masked(rng, batch)
    history = model.fit(inputs, labels, epochs=60, batch_size=6, learning_rate=1e-2)
    assert history["loss"][0] == pytest.approx(np.log(50), abs=0.5)
    assert history["loss"][-1] < 1


def test_evaluation_is_deterministic_and_training_drops_out(batch):
    model = make(BertForSequenceClassification, hidden_dropout_prob=0.5)
    np.testing.assert_array_equal(model.predict(batch), model.predict(batch))
    a, b = (model(**batch).detach().numpy() for _ in range(2))
    assert not np.array_equal(a, b)


def test_save_and_load_give_the_same_logits(batch, tmp_path):
    model = make(BertForSequenceClassification)
    model.save(tmp_path / "bert.safetensors")
    drupe.manual_seed(6)
    other = BertForSequenceClassification(CONFIG)
    assert not np.array_equal(model.predict(batch), other.predict(batch))
    other.load(tmp_path / "bert.safetensors")
    np.testing.assert_array_equal(model.predict(batch), other.predict(batch))


def test_pretrained_directories_are_hugging_faces(batch, tmp_path):
    model = make(BertForMaskedLM)
    model.save_pretrained(tmp_path / "bert")
    saved = io.load(tmp_path / "bert" / "model.safetensors")
    assert set(saved) == set(MASKED_LM) - set(BertForMaskedLM.aliases)
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert config["architectures"] == ["BertForMaskedLM"]
    again = BertForMaskedLM.from_pretrained(tmp_path / "bert")
    np.testing.assert_array_equal(model.predict(batch), again.predict(batch))


def test_a_classifier_starts_from_a_language_model(tmp_path):
    model = make(BertForMaskedLM)
    model.save_pretrained(tmp_path)
    classifier = BertForSequenceClassification.from_pretrained(tmp_path, num_labels=7)
    assert classifier.classifier.weight.shape == (7, 16)
    for name, value in model.bert.state_dict().items():
        np.testing.assert_array_equal(classifier.bert.state_dict()[name].numpy(), value.numpy())


def test_old_checkpoints_load(batch):
    """Names as the first published checkpoints have them: gamma and beta, no decoder, other heads."""
    model = make(BertForMaskedLM)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value.numpy()
        for name, value in model.state_dict().items()
        if "decoder" not in name
    }
    old |= {"cls.seq_relationship.weight": np.zeros((2, 16), np.float32), "bert.pooler.dense.bias": np.zeros(16)}
    drupe.manual_seed(8)
    other = BertForMaskedLM(CONFIG)
    assert other.load_pretrained(old) == []
    np.testing.assert_array_equal(model.predict(batch), other.predict(batch))


def test_an_incomplete_encoder_is_an_error():
    model = make(BertForMaskedLM)
    state = model.state_dict()
    del state["bert.encoder.layer.1.output.dense.bias"]
    with pytest.raises(ValueError, match=r"lacks bert\.encoder\.layer\.1\.output\.dense\.bias"):
        model.load_pretrained(state)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"input_ids": np.zeros(4, np.int64)}, ValueError, r"input_ids has shape \(4,\)"),
        ({"input_ids": np.zeros((1, 13), np.int64)}, ValueError, "positions for 12 tokens"),
        ({"input_ids": np.full((1, 3), 50)}, IndexError, "50"),
        (
            {"input_ids": np.zeros((1, 3), np.int64), "attention_mask": np.ones((1, 4))},
            ValueError,
            r"attention_mask is \(1, 4\)",
        ),
        (
            {"input_ids": np.zeros((1, 3), np.int64), "masked_positions": np.array([[3]])},
            IndexError,
            "rows of 3 tokens",
        ),
    ],
)
def test_errors(inputs, error, message):
    with pytest.raises(error, match=message):
        make(BertForMaskedLM)(**inputs)


def test_config_errors():
    with pytest.raises(ValueError, match="5 attention heads do not divide hidden size 16"):
        BertConfig(hidden_size=16, num_attention_heads=5)
    with pytest.raises(ValueError, match='hidden_act is "swish2"'):
        BertConfig(hidden_act="swish2")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind, batch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, kind.__name__)(transformers.BertConfig(**CONFIG.__dict__)).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():  # larger than at the start, so that a difference shows
        parameter.data.normal_(std=0.3)
    ours = kind(CONFIG)
    ours.load_state_dict({name: value.detach().numpy() for name, value in theirs.state_dict().items()})
    with torch.no_grad():
        expected = theirs(**{name: torch.from_numpy(value) for name, value in batch.items()}).logits.numpy()
    used = batch["attention_mask"] != 0 if kind is BertForMaskedLM else slice(None)
    np.testing.assert_allclose(ours.predict(batch)[used], expected[used], rtol=1e-4, atol=1e-4)
