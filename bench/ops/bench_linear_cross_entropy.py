"""A language model's head and its loss together: GPT-2's 50257 words of 768 features."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup


def cases(quick: bool) -> Iterator[Case]:
    """Rows of features, the loss and both gradients; peers keep the logits."""
    rows, width, classes = (32, 16, 100) if quick else (1024, 768, 50257)
    product = 2 * rows * width * classes
    yield Case(
        op="linear_cross_entropy",
        name="forward+backward",
        shapes=f"{rows}x{width}, {classes} classes",
        dtype="float32",
        flops=3 * product,
        bytes_read=4 * (rows + classes) * width,
        bytes_written=4 * (rows + classes) * width,
        setup=partial(training, rows, width, classes),
    )


def training(rows: int, width: int, classes: int, rng: np.random.Generator) -> Setup:
    """The gradients of ``mean(cross_entropy(x w^T, labels))``."""
    x = rng.standard_normal((rows, width), dtype=np.float32)
    weight = 0.02 * rng.standard_normal((classes, width), dtype=np.float32)
    labels = rng.integers(0, classes, rows)
    features, words = (drupe.tensor(value, requires_grad=True) for value in (x, weight))
    one = np.ones((), np.float32)

    def torch_loss(torch: Any, x: Any, weight: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(x @ weight.T, labels)

    def jax_loss(jax: Any, x: Any, weight: Any, labels: Any) -> Any:
        logits = x @ weight.T
        picked = jax.numpy.take_along_axis(logits, labels[:, None], -1)[:, 0]
        return (jax.scipy.special.logsumexp(logits, -1) - picked).mean()

    return Setup(
        drupe=peers.drupe_backward(lambda: ops.linear_cross_entropy(features, words, labels), one, features, words),
        tolerance=1e-5,
        peers={
            "torch": lambda: peers.torch_training(torch_loss, one, x, weight, labels),
            "jax": lambda: peers.jax_training(jax_loss, one, x, weight, labels),
        },
    )
