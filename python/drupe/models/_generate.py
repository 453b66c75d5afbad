"""The loop that continues text, for any decoder with a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from drupe import ops
from drupe.autograd import no_grad
from drupe.tensor import default_device
from drupe.train.loop import evaluating

Tokens = npt.NDArray[np.int64]


def _padded_right(input_ids: Any, attention_mask: Any) -> tuple[Tokens, npt.NDArray[np.bool_]]:
    """Return the prompts (B, S) with what is padding on the right, and the mask."""
    tokens = np.asarray(input_ids)
    if tokens.ndim != 2 or tokens.shape[1] < 1 or tokens.dtype.kind not in "iu":
        raise ValueError(f"[generate] input_ids is {tokens.dtype} {tokens.shape}: expected integers (batch, tokens)")
    mask = np.ones(tokens.shape, bool) if attention_mask is None else np.asarray(attention_mask) != 0
    if mask.shape != tokens.shape:
        raise ValueError(f"[generate] attention_mask is {mask.shape}, input_ids {tokens.shape}")
    if not mask.any(axis=1).all():
        raise ValueError(f"[generate] prompt {int(mask.any(axis=1).argmin())} is empty")
    order = np.argsort(~mask, axis=1, kind="stable")  # the tokens, then the padding
    width = int(mask.sum(axis=1).max(initial=0))
    tokens, mask = (np.take_along_axis(x, order, axis=1)[:, :width] for x in (tokens, mask))
    return tokens.astype(np.int64), mask


def generate(
    model: Any,
    input_ids: Any,
    max_new_tokens: int,
    *,
    attention_mask: Any,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    eos_token_id: int | None,
    seed: int,
) -> Tokens:
    """Return the prompts (B, S) and up to ``max_new_tokens`` more: see :meth:`drupe.models.GPT2LMHeadModel.generate`.

    The prompts go through the model once, then each step takes the token of the one before, beside the cache.
    """
    if max_new_tokens < 0:
        raise ValueError(f"[generate] max_new_tokens is {max_new_tokens}: expected a number that is not negative")
    tokens, mask = _padded_right(input_ids, attention_mask)
    B, width = tokens.shape
    added = np.empty((B, max_new_tokens), np.int64)
    ended = np.zeros(B, bool)
    given: Any = (tokens, mask)
    with evaluating(model), no_grad(), default_device(model.device):
        cache = model.make_cache(B, width + max(max_new_tokens, 1) - 1)  # the last token is not looked at
        for step in range(max_new_tokens):
            logits = model(*given, cache=cache, last=True)[:, 0]  # (B, V)
            drawn = ops.sample(
                logits, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, offset=step * B
            ).numpy()
            if eos_token_id is not None:
                drawn = np.where(ended, eos_token_id, drawn)
                ended |= drawn == eos_token_id
            added[:, step] = drawn
            if ended.all():
                added = added[:, : step + 1]
                break
            given = (drawn[:, None],)
    return np.concatenate([np.asarray(input_ids).astype(np.int64), added], axis=1)
