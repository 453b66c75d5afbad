from __future__ import annotations

import json

import numpy as np
import pytest

import drupe
from drupe import io, ops
from drupe.models import GPT2Config, GPT2LMHeadModel
from drupe.nn import init

CONFIG = GPT2Config(vocab_size=61, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)

# What transformers' state_dict() lists for these sizes.
LAYER = {
    "ln_1.weight": (16,),
    "ln_1.bias": (16,),
    "attn.c_attn.weight": (16, 48),
    "attn.c_attn.bias": (48,),
    "attn.c_proj.weight": (16, 16),
    "attn.c_proj.bias": (16,),
    "ln_2.weight": (16,),
    "ln_2.bias": (16,),
    "mlp.c_fc.weight": (16, 64),
    "mlp.c_fc.bias": (64,),
    "mlp.c_proj.weight": (64, 16),
    "mlp.c_proj.bias": (16,),
}
NAMES = {
    "transformer.wte.weight": (61, 16),
    "transformer.wpe.weight": (24, 16),
    **{f"transformer.h.0.{name}": shape for name, shape in LAYER.items()},
    **{f"transformer.h.1.{name}": shape for name, shape in LAYER.items()},
    "transformer.ln_f.weight": (16,),
    "transformer.ln_f.bias": (16,),
    "lm_head.weight": (61, 16),
}
# Three prompts of other lengths, as a mask with the padding on the right.
LENGTHS = np.array([7, 3, 5])
MASK = (np.arange(7) < LENGTHS[:, None]).astype(np.int64)


@pytest.fixture
def ids(rng):
    return rng.integers(0, 61, (3, 7))


def make(**changes):
    """Return a model with weights so large that a difference shows."""
    drupe.manual_seed(5)
    model = GPT2LMHeadModel(GPT2Config(**{**CONFIG.__dict__, **changes}))
    for parameter in model.parameters():
        init.normal(parameter, std=0.3)
    return model.eval()


def to_left(x):
    """Move the padding of MASK to the left."""
    return np.stack([np.roll(row, 7 - length) for row, length in zip(x, LENGTHS, strict=True)])


def test_names_and_shapes_are_hugging_faces():
    assert {name: value.shape for name, value in make().state_dict().items()} == NAMES


def test_the_default_is_the_smallest_gpt2():
    """As many parameters as gpt2 has, counted on one layer of it."""
    model = GPT2LMHeadModel(GPT2Config.small(n_layer=1, vocab_size=1))
    layer = sum(parameter.size for parameter in model.transformer.h[0].parameters())
    assert sum(p.size for p in model.parameters()) + 11 * layer + 50256 * 768 == 124_439_808
    assert GPT2Config.small().n_layer == 12


@pytest.mark.parametrize(("preset", "millions"), [("small", 124), ("medium", 355), ("large", 774), ("xl", 1558)])
def test_presets_have_the_published_sizes(preset, millions):
    config = getattr(GPT2Config, preset)()
    D = config.n_embd
    count = (config.vocab_size + config.n_positions) * D + config.n_layer * (12 * D * D + 13 * D) + 2 * D
    assert round(count / 1e6) == millions
    assert D // config.n_head == 64


def test_input_and_output_embeddings_are_one_parameter():
    tied, apart = make(), make(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert apart.lm_head.weight is not apart.transformer.wte.weight


def test_later_tokens_do_not_matter(ids):
    model = make()
    other = ids.copy()
    other[:, 4:] = (ids[:, 4:] + 1) % 61
    a, b = model.predict(ids), model.predict(other)
    np.testing.assert_allclose(a[:, :4], b[:, :4], rtol=1e-5, atol=1e-6)
    assert np.abs(a[:, 4:] - b[:, 4:]).max() > 1e-2


@pytest.mark.parametrize("left", [False, True])
def test_padding_does_not_matter(ids, left):
    model = make()
    tokens, mask = (to_left(x) if left else x for x in (ids, MASK))
    positions = {"position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)}
    with drupe.no_grad():
        every = model(tokens, mask, **positions).numpy()
        last = model(tokens, mask, last=True, **positions).numpy()
    for b, length in enumerate(LENGTHS):
        expected = model.predict(ids[b : b + 1, :length])[0]
        np.testing.assert_allclose(every[b][mask[b] != 0], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(last[b, 0], expected[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("cuts", [[7], [1, 1, 1, 1, 1, 1, 1], [3, 1, 3]])
def test_the_cache_does_not_change_the_logits_cuda_too(device, ids, name, cuts):
    model = make().to(device).astype(name)
    bound = {"rtol": 1e-4, "atol": 1e-5} if name == "float32" else {"rtol": 0, "atol": 6e-2}
    with drupe.no_grad():
        expected = model(ids).astype("float32").numpy()
        cache, begin = model.make_cache(3, 7), 0
        for cut in cuts:
            y = model(ids[:, begin : begin + cut], cache=cache, last=cut == 1)
            np.testing.assert_allclose(y.astype("float32").numpy(), expected[:, begin : begin + cut], **bound)
            begin += cut
    assert cache.lengths.tolist() == [7, 7, 7]


@pytest.mark.parametrize("steps", [[1, 1, 1], [3]])
def test_a_cache_holds_sequences_of_other_lengths(ids, rng, steps):
    model = make()
    more = rng.integers(0, 61, (3, 3))
    with drupe.no_grad():
        cache = model.make_cache(3, 12)
        first = model(ids, MASK, cache=cache, last=True).numpy()
        assert cache.lengths.tolist() == LENGTHS.tolist()
        ends = np.cumsum(steps)
        parts = [model(more[:, end - n : end], cache=cache).numpy() for n, end in zip(steps, ends, strict=True)]
    later = np.concatenate(parts, axis=1)
    for b, length in enumerate(LENGTHS):
        expected = model.predict(np.concatenate([ids[b, :length], more[b]])[None])[0]
        np.testing.assert_allclose(first[b, 0], expected[length - 1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(later[b], expected[length:], rtol=1e-4, atol=1e-5)


def test_the_end_of_a_chunk_of_sequences_of_other_lengths(ids, rng):
    model = make()
    more, mask = rng.integers(0, 61, (3, 3)), np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    with drupe.no_grad():
        cache = model.make_cache(3, 12)
        model(ids, MASK, cache=cache)
        last = model(more, mask, cache=cache, last=True).numpy()
    for b, count in enumerate(mask.sum(axis=1)):
        expected = model.predict(np.concatenate([ids[b, : LENGTHS[b]], more[b, :count]])[None])[0, -1]
        np.testing.assert_allclose(last[b, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_cache_can_be_used_again(ids):
    model = make()
    with drupe.no_grad():
        cache = model.make_cache(3)
        a = model(ids, cache=cache).numpy()
        cache.reset()
        np.testing.assert_array_equal(a, model(ids, cache=cache).numpy())
    assert cache.capacity == 24


def test_packed_weights_do_not_change_the_bits(rng):
    model = make()
    ids = rng.integers(0, 61, (3, 20))
    expected, tokens = model.predict(ids), model.generate(ids, 3)
    model.pack_weights()
    np.testing.assert_array_equal(model.predict(ids), expected)
    np.testing.assert_array_equal(model.generate(ids, 3), tokens)
    model.load_state_dict(make().state_dict())
    for parameter in model.parameters():
        init.normal(parameter, std=0.1)
    assert np.abs(model.predict(ids) - expected).max() > 1e-2


@pytest.mark.parametrize(("kind", "bound", "alike"), [("int8", 0.02, 0.95), ("int4", 0.3, 0.6)])
def test_quantized_weights_are_close(rng, kind, bound, alike):
    model = make(n_embd=64, vocab_size=500)
    names = list(model.state_dict())
    ids = rng.integers(0, 500, (3, 20))
    exact, tokens = model.predict(ids), model.generate(ids, 3)
    model.quantize_weights(kind)
    found = model.predict(ids)
    assert 0 < np.abs(found - exact).max() < bound * np.abs(exact).max()
    assert (found.argmax(-1) == exact.argmax(-1)).mean() > alike
    continued = model.generate(ids, 3)
    np.testing.assert_array_equal(continued[:, :20], ids)
    with drupe.no_grad():  # one token at a time reads the integers: the same but for roundings
        cache = model.make_cache(3)
        for i in range(20):
            y = model(ids[:, i : i + 1], cache=cache).numpy()
            np.testing.assert_allclose(y[:, 0], found[:, i], rtol=1e-3, atol=1e-4 * np.abs(exact).max())
    assert list(model.state_dict()) == names
    head = model.lm_head.weight
    assert head is model.transformer.wte.weight  # the word vectors stay as they are
    model.train().eval()
    np.testing.assert_array_equal(model.predict(ids), exact)
    np.testing.assert_array_equal(model.generate(ids, 3), tokens)


def greedy(model, prompt, count):
    for _ in range(count):
        prompt = np.append(prompt, model.predict(prompt[None])[0, -1].argmax())
    return prompt


@pytest.mark.parametrize("left", [False, True])
def test_generation_is_greedy_by_default_cuda_too(device, ids, left):
    model = make().to(device)
    tokens, mask = (to_left(x) if left else x for x in (ids, MASK))
    found = model.generate(tokens, 4, attention_mask=mask)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found[:, :7], tokens)
    for b, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(found[b, 7:], greedy(model, ids[b, :length], 4)[length:])


def test_generation_ends(ids):
    model = make()
    free = model.generate(ids, 6)[:, 7:]
    end = int(free[0, 2])
    found = model.generate(ids, 6, eos_token_id=end)[:, 7:]
    for row, expected in zip(found, free, strict=True):
        at = np.flatnonzero(expected == end)
        stop = at[0] + 1 if len(at) else found.shape[1]
        np.testing.assert_array_equal(row[:stop], expected[:stop])
        assert (row[stop:] == end).all()
    alone = model.generate(ids[:1], 6, eos_token_id=end)
    assert alone.shape[1] == 7 + np.flatnonzero(free[0] == end)[0] + 1
    assert model.generate(ids, 0).shape == (3, 7)


def test_generation_draws_by_a_seed(ids):
    model = make()
    hot = {"temperature": 2.0, "top_k": 20, "top_p": 0.9}
    a, b, c = (model.generate(ids, 8, seed=seed, **hot) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    np.testing.assert_array_equal(model.generate(ids, 5, temperature=1.0, top_k=1), model.generate(ids, 5))


def test_generation_leaves_the_mode_alone(ids):
    model = make(resid_pdrop=0.5).train()
    np.testing.assert_array_equal(model.generate(ids, 3), model.generate(ids, 3))
    assert model.training
    assert model.transformer.h[0].mlp.dropout.training


def test_every_parameter_gets_a_gradient(device, ids):
    model = make().train().to(device)
    target = np.where(MASK, ids, -100)
    GPT2LMHeadModel.default_loss.function(model(ids, MASK), drupe.tensor(target)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad.numpy()
        assert np.isfinite(grad).all(), name
        assert np.abs(grad).max() > 0, name


def test_the_loss_compares_with_the_token_after(ids):
    model = make()
    target = np.where(MASK, ids, -100)
    with drupe.no_grad():
        logits = model(ids)
        loss = GPT2LMHeadModel.default_loss.function(logits, drupe.tensor(target)).item()
    logs = ops.log_softmax(logits).numpy()
    expected = [-logs[b, s, target[b, s + 1]] for b in range(3) for s in range(6) if target[b, s + 1] != -100]
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)
    assert model.evaluate(ids, target)["loss"] == pytest.approx(loss, rel=1e-5)


def test_learns_a_sequence():
    drupe.manual_seed(3)
    model = GPT2LMHeadModel(GPT2Config(**{**CONFIG.__dict__, "resid_pdrop": 0.0, "embd_pdrop": 0.0}))
    ids = np.tile(np.arange(10, 15), (4, 3))[:, :12]
    history = model.fit(ids, ids, epochs=60, batch_size=4, learning_rate=1e-2)
    assert history["loss"][0] == pytest.approx(np.log(61), abs=0.5)
    assert history["loss"][-1] < 0.3
    assert model.evaluate(ids, ids)["accuracy"] > 0.9
    np.testing.assert_array_equal(model.generate(ids[:1, :8], 4), ids[:1, :12])


def test_training_drops_out(ids):
    model = make(resid_pdrop=0.5).train()
    a, b = (model(ids).detach().numpy() for _ in range(2))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("tied", [True, False])
def test_pretrained_directories_are_hugging_faces(ids, tmp_path, tied):
    model = make(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "gpt2")
    saved = io.load(tmp_path / "gpt2" / "model.safetensors")
    assert set(saved) == set(NAMES) - ({"lm_head.weight"} if tied else set())
    config = json.loads((tmp_path / "gpt2" / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert config["architectures"] == ["GPT2LMHeadModel"]
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2", resid_pdrop=0.3)
    assert again.config.resid_pdrop == 0.3
    np.testing.assert_array_equal(model.predict(ids), again.predict(ids))


def test_checkpoints_without_a_head_load(ids):
    """Names as the first published checkpoint has them: no prefix, no head, the masks beside the weights."""
    model = make()
    bare = {name.removeprefix("transformer."): value.numpy() for name, value in model.state_dict().items()}
    del bare["lm_head.weight"]
    bare |= {"h.0.attn.bias": np.ones((1, 1, 24, 24), np.float32), "h.0.attn.masked_bias": np.float32(-1e4)}
    other = GPT2LMHeadModel(CONFIG)
    other.load_pretrained(bare)
    np.testing.assert_array_equal(model.predict(ids), other.predict(ids))


def test_an_incomplete_checkpoint_is_an_error():
    state = make().state_dict()
    del state["transformer.h.1.mlp.c_proj.bias"]
    with pytest.raises(ValueError, match=r"lacks transformer\.h\.1\.mlp\.c_proj\.bias"):
        make().load_pretrained(state)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"input_ids": np.zeros(4, np.int64)}, ValueError, r"input_ids has shape \(4,\)"),
        ({"input_ids": np.zeros((1, 25), np.int64)}, ValueError, "positions for 24 tokens"),
        ({"input_ids": np.full((1, 3), 61)}, IndexError, "61"),
        (
            {"input_ids": np.zeros((1, 3), np.int64), "attention_mask": np.ones((1, 4))},
            ValueError,
            r"attention_mask is \(1, 4\)",
        ),
    ],
)
def test_errors(inputs, error, message):
    with pytest.raises(error, match=message):
        make()(**inputs)


def test_errors_of_a_cache(ids):
    model = make()
    with drupe.no_grad():
        with pytest.raises(ValueError, match="the cache is for 2 sequences"):
            model(ids, cache=model.make_cache(2))
        with pytest.raises(ValueError, match="padding on the left"):
            model(ids, to_left(MASK), cache=model.make_cache(3))
        with pytest.raises(ValueError, match="capacity is 6"):
            model(ids, cache=model.make_cache(3, 6))
    with pytest.raises(RuntimeError, match="no_grad"):
        model(ids, cache=model.make_cache(3))


def test_errors_of_generation(ids):
    model = make()
    for arguments, message in [
        ((ids[0], 1), "input_ids is int64"),
        ((ids[:, :0], 1), "input_ids is int64"),
        ((ids.astype(np.float32), 1), "input_ids is float32"),
        ((ids, -1), "max_new_tokens is -1"),
        ((ids, 19), "room for 25 tokens.*n_positions is 24"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.generate(*arguments)
    with pytest.raises(ValueError, match=r"attention_mask is \(3, 6\)"):
        model.generate(ids, 1, attention_mask=MASK[:, :6])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        model.generate(ids, 1, attention_mask=MASK * [[1], [0], [1]])


def test_config_errors():
    with pytest.raises(ValueError, match="5 attention heads do not divide n_embd 16"):
        GPT2Config(n_embd=16, n_head=5)
    with pytest.raises(ValueError, match='activation_function is "swish2"'):
        GPT2Config(activation_function="swish2")
    with pytest.raises(ValueError, match="add_cross_attention"):
        GPT2Config.from_dict({"add_cross_attention": True})


CHANGES = [{}, {"scale_attn_by_inverse_layer_idx": True, "n_inner": 24}, {"scale_attn_weights": False}]


@pytest.mark.parametrize("changes", [*CHANGES, {"activation_function": "relu", "tie_word_embeddings": False}], ids=str)
def test_logits_are_those_of_transformers(ids, tmp_path, changes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours = make(**changes)
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(ours.predict(ids), expected, rtol=1e-4, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "theirs")
    np.testing.assert_array_equal(again.predict(ids), ours.predict(ids))
    if changes.get("tie_word_embeddings", True):
        theirs.transformer.save_pretrained(tmp_path / "bare")
        bare = GPT2LMHeadModel.from_pretrained(tmp_path / "bare")
        np.testing.assert_array_equal(bare.predict(ids), ours.predict(ids))


@pytest.mark.parametrize("left", [False, True])
def test_generation_is_that_of_transformers(ids, left, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours = make()
    ours.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    mask = to_left(MASK) if left else np.ones_like(ids)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = theirs.generate(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), **options)
    np.testing.assert_array_equal(ours.generate(ids, 6, attention_mask=mask), expected.numpy())
