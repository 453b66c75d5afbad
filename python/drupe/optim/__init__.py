"""Optimizers: they hold the parameters and the state of their updates; the arithmetic is in ``drupe.ops``.

Parameters come as tensors, or as groups: dicts with ``"params"`` and whatever options differ from the defaults. A
parameter without a gradient is left alone, and its step is not counted. Gradients may be dense or
:class:`drupe.SparseRows` (see :mod:`drupe.ops.optimizer` for what that means).
"""

from drupe.optim.adam import Adam, AdamW
from drupe.optim.clip import clip_grad_norm, clip_grad_value
from drupe.optim.optimizer import Optimizer
from drupe.optim.rmsprop import RMSprop
from drupe.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "clip_grad_norm", "clip_grad_value"]
