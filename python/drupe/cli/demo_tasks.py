"""The three networks of ``drupe demo``: each trained on real data, beside a baseline on the same split.

Of every data set some rows are held out, and asked about once, at the end. A tenth of the rest is for validation: to
watch the training, and to choose its options by. Network and baseline both learn from the rows that remain, and from
those alone.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import drupe
from drupe.data import (
    MaskedTokens,
    ShiftedImages,
    WordPiece,
    digits,
    fair,
    python_documentation,
    split,
    stdlib_docstrings,
)
from drupe.models import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ResNet,
    ResNetConfig,
    WideDeep,
    WideDeepConfig,
)
from drupe.train import Callback, History, Model

# Makes a progress bar with a label.
Progress = Callable[[str], Callback]
Rows = npt.NDArray[np.int64]


@dataclass
class Outcome:
    """What became of one network.

    Attributes:
        name: of the network.
        task: what it had to tell.
        parameters: how many it has.
        train_rows: examples that it was trained on.
        validation_rows: examples that its training was watched by.
        held_rows: examples held out.
        accuracy: on those.
        baseline: what it stands beside.
        baseline_accuracy: on the same examples.
        majority: the share of the most frequent answer among them.
        histories: (label, history) of each training run.
        fingerprint: of all trained parameters: equal if and only if every bit is.
        prediction: lines that show what it says of unseen input.
        extra: more numbers, by name.
        checkpoints: the files it was saved to.
        seconds: that the training took, evaluation included.
    """

    name: str
    task: str
    parameters: int
    train_rows: int
    validation_rows: int
    held_rows: int
    accuracy: float
    baseline: str
    baseline_accuracy: float
    majority: float
    histories: list[tuple[str, History]]
    fingerprint: str
    prediction: list[str]
    extra: dict[str, float] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    seconds: float = 0.0


def _three_way(
    rows: int, *, fraction: float, seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[Rows, Rows, Rows]:
    """Divide ``range(rows)`` into indices to train on, for validation (a tenth of the rest), and held out.

    Args:
        rows: how many there are.
        fraction: in (0, 1): how many to hold out, of the rows or, if given, of the groups.
        seed: of the choice.
        groups: one label per row; rows of one group stay together.
    """
    rest, held = split(rows, fraction=fraction, seed=seed, groups=groups)
    inner = None if groups is None else [groups[i] for i in rest]
    train, validation = split(len(rest), fraction=0.1, seed=seed, groups=inner)
    return rest[train], rest[validation], held


def _fingerprint(*models: Model) -> str:
    digest = hashlib.sha256()
    for model in models:
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:12]


def _size(model: Model) -> int:
    return sum(parameter.size for parameter in model.parameters())


def _majority(labels: npt.NDArray[np.int64]) -> float:
    return float(np.bincount(labels).max() / len(labels))


def _sklearn(module: str) -> Any:
    return importlib.import_module(f"sklearn.{module}")


def text(out: Path, seed: int, quick: bool, progress: Progress) -> Outcome:
    """Pretrain a small BERT on the Python documentation, then teach it to sort docstrings into chapters."""
    drupe.manual_seed(seed)
    docs = stdlib_docstrings()
    train, validation, held = _three_way(len(docs), fraction=0.2, seed=seed, groups=docs.groups)
    labels = np.array(docs.labels)
    train_texts, validation_texts, held_texts = ([docs.texts[i] for i in rows] for rows in (train, validation, held))

    corpus = [*python_documentation().values(), *train_texts]
    tokenizer = WordPiece.train(corpus, vocab_size=6000)
    packed = tokenizer.pack(corpus, length=64)
    # So short a training underfits: no dropout before there is a small set to learn by heart.
    config = BertConfig.tiny(
        vocab_size=len(tokenizer), max_position_embeddings=96, hidden_dropout_prob=0.0, initializer_range=0.05
    )
    encoder = BertForMaskedLM(config)
    watched = MaskedTokens(tokenizer.pack(validation_texts, length=64), tokenizer)
    pretraining = encoder.fit(
        MaskedTokens(packed, tokenizer),
        epochs=1 if quick else 4,
        batch_size=16,
        learning_rate=1e-3,
        weight_decay=0.01,
        schedule="linear",
        warmup=0.1,
        max_grad_norm=1.0,
        validation_data=watched.sample(np.random.default_rng(seed)),
        seed=seed,
        callbacks=[progress("BERT · masked words")],
    )
    encoder.save_pretrained(out / "bert-masked-lm")
    tokenizer.save(out / "bert-masked-lm" / "vocab.txt")

    tuned = replace(config, hidden_dropout_prob=0.1, num_labels=len(docs.label_names))
    classifier = BertForSequenceClassification(tuned)
    classifier.load_pretrained(encoder.state_dict())
    encoded = tokenizer.encode(docs.texts, max_length=96)
    x_train, x_validation, x_held = (
        {name: value[rows] for name, value in encoded.inputs().items()} for rows in (train, validation, held)
    )
    tuning = classifier.fit(
        x_train,
        labels[train],
        epochs=1 if quick else 5,
        batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.01,
        schedule="linear",
        warmup=0.1,
        max_grad_norm=1.0,
        validation_data=(x_validation, labels[validation]),
        seed=seed,
        callbacks=[progress("BERT · chapters")],
    )
    classifier.save_pretrained(out / "bert-chapters")
    tokenizer.save(out / "bert-chapters" / "vocab.txt")

    logits = classifier.predict(x_held)
    return Outcome(
        name="BERT",
        task=f"chapter of the manual ({len(docs.label_names)}) from a docstring",
        parameters=_size(classifier),
        train_rows=len(train),
        validation_rows=len(validation),
        held_rows=len(held),
        accuracy=float((logits.argmax(axis=1) == labels[held]).mean()),
        baseline="TF-IDF, logistic regression",
        baseline_accuracy=_text_baseline(train_texts, labels[train], held_texts, labels[held]),
        majority=_majority(labels[held]),
        histories=[("masked words", pretraining), ("chapters", tuning)],
        fingerprint=_fingerprint(encoder, classifier),
        prediction=[
            *_fill_in(encoder, tokenizer, "Return True if the object is an [MASK] of the class."),
            *_fill_in(encoder, tokenizer, "If the file does not exist, an [MASK] is raised."),
            *_name_chapter(classifier, tokenizer, docs.label_names, held_texts[0], int(labels[held][0])),
        ],
        extra={"masked_word_accuracy": pretraining["val_accuracy"][-1]},
        checkpoints=["bert-masked-lm/model.safetensors", "bert-chapters/model.safetensors"],
    )


def _text_baseline(
    train: list[str], train_labels: npt.NDArray[Any], held: list[str], held_labels: npt.NDArray[Any]
) -> float:
    features = _sklearn("feature_extraction.text").TfidfVectorizer(sublinear_tf=True)
    model = (
        _sklearn("linear_model")
        .LogisticRegression(C=10, max_iter=1000)
        .fit(features.fit_transform(train), train_labels)
    )
    return float(model.score(features.transform(held), held_labels))


def _fill_in(model: BertForMaskedLM, tokenizer: WordPiece, sentence: str) -> list[str]:
    encoded = tokenizer.encode([sentence], max_length=64)
    position = np.flatnonzero(encoded.input_ids[0] == tokenizer.mask_id)
    logits = model.predict({**encoded.inputs(), "masked_positions": position[None, :1]})[0, 0]
    odds = np.exp(logits - logits.max())
    best = np.argsort(-odds, kind="stable")[:4]
    guesses = ", ".join(f"{tokenizer.vocabulary[i]} {odds[i] / odds.sum():.0%}" for i in best)
    return [f"“{sentence}”", f"   [MASK] = {guesses}"]


def _name_chapter(
    model: BertForSequenceClassification, tokenizer: WordPiece, names: list[str], sentence: str, label: int
) -> list[str]:
    logits = model.predict(tokenizer.encode([sentence], max_length=96).inputs())[0]
    odds = np.exp(logits - logits.max())
    best = int(odds.argmax())
    line = " ".join(sentence.split())
    shown = line if len(line) <= 90 else f"{line[:89]}…"
    return [f"“{shown}”", f"   chapter: {names[best]} {odds[best] / odds.sum():.0%} (it is {names[label]})"]


def pictures(out: Path, seed: int, quick: bool, progress: Progress) -> Outcome:
    """Train a small ResNet on handwritten digits."""
    drupe.manual_seed(seed)
    images, labels = digits()
    train, validation, held = _three_way(len(images), fraction=0.25, seed=seed)
    model = ResNet(ResNetConfig.digits())
    history = model.fit(
        ShiftedImages(images[train], labels[train]),
        epochs=2 if quick else 25,
        batch_size=32,
        learning_rate=3e-3,
        weight_decay=0.01,
        schedule="cosine",
        warmup=0.1,
        validation_data=(images[validation], labels[validation]),
        seed=seed,
        callbacks=[progress("ResNet · digits")],
    )
    model.save(out / "resnet-digits.safetensors")
    logits = model.predict(images[held])

    flat = images.reshape(len(images), -1)
    baseline = _sklearn("svm").SVC(gamma="scale", C=10).fit(flat[train], labels[train])
    return Outcome(
        name="ResNet",
        task="digit (10) from an image of 8×8",
        parameters=_size(model),
        train_rows=len(train),
        validation_rows=len(validation),
        held_rows=len(held),
        accuracy=float((logits.argmax(axis=1) == labels[held]).mean()),
        baseline="support vector machine",
        baseline_accuracy=float(baseline.score(flat[held], labels[held])),
        majority=_majority(labels[held]),
        histories=[("digits", history)],
        fingerprint=_fingerprint(model),
        prediction=_draw(images[held][0, 0], logits[0], int(labels[held][0])),
        checkpoints=["resnet-digits.safetensors"],
    )


def _draw(image: npt.NDArray[np.float32], logits: npt.NDArray[np.float32], label: int) -> list[str]:
    shades = " ░▒▓█"
    rows = ["".join(2 * shades[min(4, int(pixel * 5))] for pixel in row) for row in image]
    odds = np.exp(logits - logits.max())
    best = int(odds.argmax())
    return [*rows, f"   digit: {best} {odds[best] / odds.sum():.0%} (it is {label})"]


def table(out: Path, seed: int, quick: bool, progress: Progress) -> Outcome:
    """Train Wide & Deep on a survey."""
    drupe.manual_seed(seed)
    data = fair()
    train, validation, held = _three_way(len(data.target), fraction=0.25, seed=seed)
    mean, deviation = data.numeric[train].mean(axis=0), data.numeric[train].std(axis=0)
    numeric = (data.numeric - mean) / deviation
    column = {name: i for i, name in enumerate(data.categorical_names)}
    pairs = [("rate_marriage", "religious"), ("age", "yrs_married"), ("occupation", "educ")]
    config = WideDeepConfig(
        data.cardinalities,
        numeric=numeric.shape[1],
        crosses=tuple((column[a], column[b]) for a, b in pairs),
        embedding_size=4,
        hidden=(16,),
        dropout=0.2,
    )
    model = WideDeep(config)
    x_train, x_validation, x_held = (
        {"categorical": data.categorical[rows], "numeric": numeric[rows]} for rows in (train, validation, held)
    )
    history = model.fit(
        x_train,
        data.target[train],
        epochs=2 if quick else 20,
        batch_size=128,
        learning_rate=2e-3,
        weight_decay=0.3,
        schedule="cosine",
        validation_data=(x_validation, data.target[validation]),
        seed=seed,
        callbacks=[progress("Wide & Deep · survey")],
    )
    model.save(out / "wide-deep-fair.safetensors")
    chance = 1 / (1 + np.exp(-model.predict(x_held).astype(np.float64)))
    answers = ", ".join(f"{name} {value}" for name, value in data.describe(int(held[0])).items())
    return Outcome(
        name="Wide & Deep",
        task="affair (yes or no) from a survey's answers",
        parameters=_size(model),
        train_rows=len(train),
        validation_rows=len(validation),
        held_rows=len(held),
        accuracy=float(((chance > 0.5) == data.target[held]).mean()),
        baseline="logistic regression",
        baseline_accuracy=_table_baseline(data.categorical, numeric, data.target, train, held),
        majority=_majority(data.target[held]),
        histories=[("survey", history)],
        fingerprint=_fingerprint(model),
        prediction=[answers, f"   affair: {chance[0]:.0%} (the answer was {'yes' if data.target[held][0] else 'no'})"],
        checkpoints=["wide-deep-fair.safetensors"],
    )


def _table_baseline(
    categorical: npt.NDArray[Any],
    numeric: npt.NDArray[Any],
    target: npt.NDArray[Any],
    train: npt.NDArray[Any],
    held: npt.NDArray[Any],
) -> float:
    encoder = _sklearn("preprocessing").OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    encoder.fit(categorical[train])
    features = np.concatenate([encoder.transform(categorical), numeric], axis=1)
    model = _sklearn("linear_model").LogisticRegression(max_iter=2000).fit(features[train], target[train])
    return float(model.score(features[held], target[held]))


TASKS = {"text": text, "pictures": pictures, "table": table}


def train(name: str, out: Path, seed: int, quick: bool, progress: Progress) -> Outcome:
    """Run one of the tasks and time it."""
    start = time.perf_counter()
    outcome = TASKS[name](out, seed, quick, progress)
    outcome.seconds = time.perf_counter() - start
    return outcome
