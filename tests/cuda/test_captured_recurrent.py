"""Recurrent layers in graphs: a replay walks all steps again, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from capture import captured, on_device
from drupe import cuda, ops
from recurrent_reference import Problem, joined


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_replay_gives_the_bits_of_an_eager_run(rng, kind):
    problem = Problem(kind, rng, 4, 3, 5, 6, 2, "float32")
    lengths = on_device(np.array([4, 0, 2]))
    leaves = [drupe.Tensor(on_device(a).raw, requires_grad=True) for a in problem.arrays()]

    def run():
        for leaf in leaves:
            leaf.grad = None
        total = joined(problem.call_flat(leaves, lengths))
        ops.sum(ops.square(total)).backward()
        return total.detach(), *(leaf.grad for leaf in leaves)

    graph, results = captured(run)
    for lengths_now in ([4, 0, 2], [1, 4, 3]):
        leaves[0].copy_from(rng.standard_normal(problem.x.shape).astype(np.float32))
        lengths.copy_from(np.array(lengths_now))
        graph.replay()
        replayed = [r.numpy().copy() for r in results]
        for actual, expected in zip(replayed, run(), strict=True):
            np.testing.assert_array_equal(actual, expected.numpy())


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_wrong_lengths_are_reported_after_the_replay(rng, kind):
    problem = Problem(kind, rng, 3, 2, 4, 5, 1, "float32")
    arrays = [on_device(a) for a in problem.arrays()]
    lengths = on_device(np.array([3, 1]))
    graph, _ = captured(lambda: problem.call_flat(arrays, lengths))
    lengths.copy_from(np.array([3, 4]))
    graph.replay()
    with pytest.raises(ValueError, match=rf"\[{kind}\] lengths\[1\] is 4: expected 0 to 3"):
        cuda.synchronize()
