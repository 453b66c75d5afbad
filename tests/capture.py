"""What tests of CUDA graphs share."""

from __future__ import annotations

import drupe
from drupe import cuda


def on_device(array, dtype=None):
    return drupe.tensor(array, dtype).to("cuda")


def captured(function):
    """Capture it, and give the graph and what it returned."""
    graph = cuda.Graph()
    with graph.capture():
        result = function()
    return graph, result
