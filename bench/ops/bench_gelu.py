"""GELU by itself, in its exact form: a BERT layer's intermediate activations."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import erf
from typing import Any

import numpy as np

import drupe
from drupe import ops
from drupe.bench import peers
from drupe.bench.harness import Case, Setup

_erf = np.vectorize(erf, otypes=[float])


def cases(quick: bool) -> Iterator[Case]:
    """Rows by columns, forward and backward."""
    rows, columns = (64, 256) if quick else (8192, 3072)
    size = rows * columns
    for name, setup, reads, target in (("forward", forward, 1, 0.8), ("backward", backward, 2, 0.3)):
        yield Case(
            op="gelu",
            name=name,
            shapes=f"{rows}x{columns}",
            dtype="float32",
            flops=25 * size,
            bytes_read=4 * size * reads,
            bytes_written=4 * size,
            setup=partial(setup, rows, columns),
            target=target,
        )


def _sampled(y: Any) -> Any:
    """Take every 97th element: the reference's erf is slow."""
    from drupe.bench.harness import as_arrays

    return [array.reshape(-1)[::97] for array in as_arrays(y)]


def forward(rows: int, columns: int, rng: np.random.Generator) -> Setup:
    """``x (1 + erf(x / sqrt 2)) / 2``."""
    x = rng.standard_normal((rows, columns), dtype=np.float32)
    nodes = [{"op": "Gelu", "inputs": ["x"], "outputs": ["y"]}]

    def reference() -> Any:
        z = x.reshape(-1)[::97].astype(np.float64)
        return 0.5 * z * (1 + _erf(z / np.sqrt(2)))

    rivals = {
        "torch": lambda: peers.torch_call(lambda torch, x: torch.nn.functional.gelu(x), x),
        "jax": lambda: peers.jax_call(lambda jax, x: jax.nn.gelu(x, approximate=False), x),
        **peers.onnx_peers(nodes, {"x": x}),
    }
    return Setup(
        drupe=peers.drupe_call(ops.gelu, x),
        reference=reference,
        tolerance=1e-5,
        view=_sampled,
        peers=peers.with_view(rivals, _sampled),
    )


def backward(rows: int, columns: int, rng: np.random.Generator) -> Setup:
    """``dy (Phi(x) + x phi(x))``."""
    a, dy = (rng.standard_normal((rows, columns), dtype=np.float32) for _ in range(2))
    x = drupe.tensor(a, requires_grad=True)
    y = ops.gelu(x)

    def reference() -> Any:
        z = a.reshape(-1)[::97].astype(np.float64)
        slope = 0.5 * (1 + _erf(z / np.sqrt(2))) + z * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
        return slope * dy.reshape(-1)[::97]

    rivals = {
        "torch": lambda: peers.torch_backward(lambda torch, x: torch.nn.functional.gelu(x), dy, a),
        "jax": lambda: peers.jax_backward(lambda jax, x: jax.nn.gelu(x, approximate=False), dy, a),
    }
    return Setup(
        drupe=peers.drupe_backward(lambda: y, dy, x),
        reference=reference,
        tolerance=1e-5,
        view=_sampled,
        peers=peers.with_view(rivals, _sampled),
    )
