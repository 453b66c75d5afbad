"""Masked language modelling: hide some tokens, and ask for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from drupe.data.wordpiece import SPECIAL_TOKENS, Encoded, WordPiece

IGNORE_INDEX = -100

Inputs = dict[str, npt.NDArray[np.int64]]


def mask_tokens(
    encoded: Encoded,
    tokenizer: WordPiece,
    rng: np.random.Generator,
    *,
    probability: float = 0.15,
) -> tuple[Inputs, npt.NDArray[np.int64]]:
    """Hide tokens, as many in every row of a given length: 80 % by [MASK], 10 % by a random token, 10 % not at all.

    Args:
        encoded: rows of tokens (N, S).
        tokenizer: whose special tokens are never hidden nor drawn.
        rng: of the choice.
        probability: the share of a row's ordinary tokens to hide, in (0, 1]; at least one token of every row.

    Returns:
        Inputs ``input_ids`` (N, S), ``attention_mask`` (N, S), ``masked_positions`` (N, P), and labels (N, P): the
        hidden tokens, -100 (and position 0) where a row has fewer than P.

    Raises:
        ValueError: ``probability`` outside (0, 1].

    Reference:
        J. Devlin et al., "BERT", arXiv:1810.04805, section 3.1.
    """
    if not 0 < probability <= 1:
        raise ValueError(f"[mask_tokens] probability is {probability}: expected a number in (0, 1]")
    ids = encoded.input_ids.copy()
    special: Sequence[int] = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
    candidates = ~np.isin(ids, special)
    wanted = np.maximum(np.rint(candidates.sum(axis=1) * probability).astype(np.int64), candidates.any(axis=1))
    # The positions of the smallest random numbers of each row, those of special tokens last.
    keys = np.where(candidates, rng.random(ids.shape), 2.0)
    P = max(1, int(wanted.max(initial=0)))
    chosen = np.argsort(keys, axis=1)[:, :P]  # (N, P)
    used = np.arange(P) < wanted[:, None]  # (N, P)
    positions = np.where(used, chosen, 0)
    labels = np.where(used, np.take_along_axis(ids, positions, axis=1), IGNORE_INDEX)

    fate = rng.random(positions.shape)
    ordinary = np.array([i for i, token in enumerate(tokenizer.vocabulary) if token not in SPECIAL_TOKENS])
    replacement = np.where(fate < 0.8, tokenizer.mask_id, rng.choice(ordinary, positions.shape))
    rows, columns = np.nonzero(used & (fate < 0.9))
    ids[rows, positions[rows, columns]] = replacement[rows, columns]
    inputs = {"input_ids": ids, "attention_mask": encoded.attention_mask, "masked_positions": positions}
    return inputs, labels


class MaskedTokens:
    """A data source for ``fit`` that hides other tokens in every epoch (:func:`mask_tokens`)."""

    def __init__(self, encoded: Encoded, tokenizer: WordPiece, *, probability: float = 0.15) -> None:
        self.encoded, self.tokenizer, self.probability = encoded, tokenizer, probability

    def __len__(self) -> int:
        return len(self.encoded)

    def sample(self, rng: np.random.Generator) -> tuple[Inputs, npt.NDArray[np.int64]]:
        """Return the inputs and labels of one epoch."""
        return mask_tokens(self.encoded, self.tokenizer, rng, probability=self.probability)
