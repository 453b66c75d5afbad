"""Where there is no GPU: what needs one says why there is none."""

from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import cuda, optim

STATUS = drupe.cuda_status()
pytestmark = pytest.mark.skipif(STATUS["available"], reason="there is a device")


@pytest.mark.parametrize(
    "ask",
    [
        cuda.Stream,
        cuda.current_stream,
        cuda.Event,
        cuda.Graph,
        cuda.synchronize,
        lambda: cuda.pin(np.zeros(3)),
        lambda: cuda.memory_stats("cuda"),
        lambda: drupe.zeros((2,)).to("cuda", non_blocking=True),
    ],
)
def test_it_says_what_is_missing(ask):
    with pytest.raises(RuntimeError, match=r"\[cuda\] (this build has no CUDA backend|no device can be used): .+"):
        ask()


def test_what_can_be_answered_is():
    assert not cuda.is_available()
    assert not cuda.is_capturing()
    assert not drupe.zeros((2,)).is_pinned
    cuda.empty_cache()
    host = drupe.zeros((2,)).to("cpu", non_blocking=True)
    assert host.tolist() == [0, 0]


def test_capturable_needs_a_device():
    p = drupe.tensor([1.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"\[SGD\] params\[0\] lies on cpu.*capturable=True"):
        optim.SGD([p], lr=0.1, capturable=True)
