from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from drupe.data import Encoded, MaskedTokens, WordPiece, mask_tokens, python_documentation, stdlib_docstrings

pytest.importorskip("tokenizers")

TRAIN = """
from drupe.data import WordPiece, python_documentation
import hashlib
texts = list(python_documentation().values())[:12]
print(hashlib.sha256("\\n".join(WordPiece.train(texts, vocab_size=700).vocabulary).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def documentation():
    return list(python_documentation().values())


@pytest.fixture(scope="module")
def tokenizer(documentation):
    return WordPiece.train(documentation, vocab_size=1500)


def test_documentation_is_english_in_paragraphs(documentation):
    text = " ".join(documentation)
    assert len(text) > 300_000
    assert text.count(" the ") > 3000
    assert not re.search(r"(^|\s)\*{3,}(\s|$)", text)


def test_docstrings_are_labelled_once(documentation):
    docs = stdlib_docstrings()
    assert len(docs) > 2000
    assert len(set(docs.texts)) == len(docs.texts) == len(docs.labels) == len(docs.groups)
    assert set(docs.labels) == set(range(len(docs.label_names)))
    labels = dict(zip(docs.groups, docs.labels, strict=True))
    assert docs.label_names[labels["statistics.mean"]] == "mathematics"
    assert docs.label_names[labels["tarfile.TarFile"]] == "files and storage"
    assert all(len(text.split()) >= 6 for text in docs.texts)


def test_vocabulary_has_berts_special_tokens_first(tokenizer):
    assert tokenizer.vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(tokenizer) == len(set(tokenizer.vocabulary)) == 1500


def test_training_gives_the_same_vocabulary_in_every_process():
    digests = {
        subprocess.run(
            [sys.executable, "-c", TRAIN],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_encode_frames_cuts_and_pads(tokenizer):
    encoded = tokenizer.encode(["Return the value.", "the " * 50], max_length=16)
    ids, mask = encoded.input_ids, encoded.attention_mask
    assert ids.shape == mask.shape == (2, 16)
    assert ids.dtype == np.int64
    for row, used in zip(ids, mask, strict=True):
        length = used.sum()
        assert row[0] == tokenizer.cls_id
        assert row[length - 1] == tokenizer.sep_id
        assert (row[length:] == tokenizer.pad_id).all()
        assert (used[:length] == 1).all()
    assert tokenizer.decode(ids[0]) == "return the value."


def test_special_tokens_in_the_text_are_recognised(tokenizer):
    assert tokenizer.mask_id in tokenizer.ids("the [MASK] of a class")


def test_unknown_characters_become_unk(tokenizer):
    assert tokenizer.ids("\u6f22") == [tokenizer.unk_id]


def test_pack_keeps_every_token_and_mixes_no_texts(tokenizer, documentation):
    texts = documentation[:5]
    packed = tokenizer.pack(texts, length=32)
    assert packed.input_ids.shape[1] == 32
    kept = [
        i for row in packed.input_ids for i in row if i not in (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
    ]
    assert kept == [i for text in texts for i in tokenizer.ids(text)]


def test_vocabulary_round_trip(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "vocab.txt")
    other = WordPiece.from_file(tmp_path / "vocab.txt")
    assert other.vocabulary == tokenizer.vocabulary
    text = "An instance of the class is returned."
    assert other.ids(text) == tokenizer.ids(text)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda t: t.encode([]), "no texts"),
        (lambda t: t.encode(["a"], max_length=2), "max_length is 2"),
        (lambda t: t.pack([""]), "no tokens"),
        (lambda t: WordPiece(["a"]), r"lacks \[PAD\]"),
        (lambda t: WordPiece.train(["abcdef"], vocab_size=6), "vocab_size is 6: the characters alone take 17"),
    ],
)
def test_errors(tokenizer, act, message):
    with pytest.raises(ValueError, match=message):
        act(tokenizer)


def test_masking_hides_the_right_share_in_the_right_way(tokenizer, documentation, rng):
    packed = tokenizer.pack(documentation, length=64)
    inputs, labels = mask_tokens(packed, tokenizer, rng)
    ids, positions = inputs["input_ids"], inputs["masked_positions"]
    used = labels != -100
    ordinary = packed.attention_mask.sum() - 2 * len(packed)
    assert used.sum() / ordinary == pytest.approx(0.15, abs=0.01)

    original = np.take_along_axis(packed.input_ids, positions, axis=1)
    now = np.take_along_axis(ids, positions, axis=1)
    np.testing.assert_array_equal(labels[used], original[used])
    assert not np.isin(original[used], [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id]).any()
    assert (now[used] == tokenizer.mask_id).mean() == pytest.approx(0.8, abs=0.02)
    assert (now[used] == original[used]).mean() == pytest.approx(0.1, abs=0.02)
    assert not np.isin(now[used], [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id]).any()

    changed = ids != packed.input_ids
    hidden = np.zeros_like(changed)
    rows, columns = np.nonzero(used)
    hidden[rows, positions[rows, columns]] = True
    assert hidden.sum() == used.sum(), "a position was chosen twice"
    assert not (changed & ~hidden).any(), "a token changed that nobody is asked for"


def test_short_rows_hide_at_least_one_token(tokenizer, rng):
    encoded = tokenizer.encode(["class"], max_length=8)
    _, labels = mask_tokens(encoded, tokenizer, rng)
    assert (labels != -100).sum() == 1
    empty = Encoded(np.array([[tokenizer.cls_id, tokenizer.sep_id]]), np.ones((1, 2), np.int64))
    _, labels = mask_tokens(empty, tokenizer, rng)
    assert (labels == -100).all()


def test_masking_source_is_reproducible_and_fresh(tokenizer, documentation):
    source = MaskedTokens(tokenizer.pack(documentation[:3], length=32), tokenizer)
    one, two, other = (source.sample(np.random.default_rng(seed))[0]["input_ids"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("probability", [0, 1.5, float("nan")])
def test_masking_probability_is_checked(tokenizer, rng, probability):
    with pytest.raises(ValueError, match="probability is"):
        mask_tokens(tokenizer.encode(["class"]), tokenizer, rng, probability=probability)
