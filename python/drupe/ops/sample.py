"""Drawing the next token."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Call


def sample(
    logits: A,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int,
    offset: int = 0,
) -> A:
    """Draw the next token of each row from ``softmax(logits / temperature)``.

    Tokens are ranked by their logits, of equal ones the lower index first. ``top_k`` leaves the k first; ``top_p``
    the fewest first of those whose mass is at least p times theirs; ``min_p`` those at least ``min_p`` times as likely
    as the first. Of what is left, in the order of the indices, row r takes the first token up to which the mass is more
    than ``u`` times all of it, where ``u = (word 0 >> 8) * 2^-24 + (word 1 >> 8) * 2^-48`` are words of Philox4x32-10
    with the 128-bit counter r + offset and the 64-bit key ``seed``, low words first. Weights are integers that every
    device makes alike, so the tokens depend neither on the device nor on the number of threads.

    Args:
        logits: (..., V), float32, float16 or bfloat16; copied unless it is C-contiguous. -infinity is never drawn, nor
            what is less likely than about 2^-40 times the likeliest token.
        temperature: finite; 0 gives the largest logit, the first of equals.
        top_k: at least 1; more than V leaves all.
        top_p: above 0, at most 1.
        min_p: 0 to 1.
        seed: the key, 0 to 2^64 - 1.
        offset: what is added to the rows' numbers, 0 to 2^64 - 1. A loop that draws for B rows a step passes B times
            the step.

    Returns:
        int64 indices (...,).

    Raises:
        ValueError: an argument out of range; no tokens; a row that has NaN or infinity, or is all -infinity.
        TypeError: not one of these dtypes.

    Reference:
        A. Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020; M. N. Nguyen et al., "Turning Up
        the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", ICLR 2025.
    """
    for name, value in (("seed", seed), ("offset", offset)):
        if not 0 <= value < 2**64:
            raise ValueError(f"[sample] {name} is {value}: expected 0 to 2^64 - 1")
    call = Call("sample", logits)
    return call.output(_C.sample(call.raw[0], temperature, top_k, top_p, min_p, seed, offset))
