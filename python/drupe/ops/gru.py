"""Gated recurrent units."""

from __future__ import annotations

from drupe.ops._call import A, Array
from drupe.ops._recurrent import Weights, recurrent


def gru(
    x: A,
    weights: Weights,
    reverse_weights: Weights | None = None,
    *,
    h0: Array | None = None,
    lengths: Array | None = None,
) -> tuple[A, A]:
    """One layer of gated recurrent units, in one direction or in both.

    At each step, from the state h of the one before::

        a = W_ih x_t + b_ih;  u = W_hh h + b_hh           # in thirds r, z, n
        r = sigmoid(a_r + u_r);  z = sigmoid(a_z + u_z);  n = tanh(a_n + r * u_n)
        h' = (1 - z) * n + z * h

    For float16 and bfloat16 each share of a gate is summed in float32 and rounded to the dtype (on the CPU that of h
    is not, nor are biases), and h is rounded at each step.

    Args:
        x: (T, B, I), time first; float. Copied unless it is C-contiguous.
        weights: ``(weight_ih, weight_hh)`` or ``(weight_ih, weight_hh, bias_ih, bias_hh)``: (3 H, I), (3 H, H), (3 H,)
            and (3 H,), in the dtype of ``x``; a bias may be None.
        reverse_weights: the same for a second direction, which walks from the last step to the first.
        h0: (D, B, H), of D directions; zeros by default.
        lengths: (B,), int32 or int64, 0 to T: how many steps each sequence has; T by default. At later steps its state
            stays as it is and ``y`` is 0, so that the second direction starts at the sequence's own end. What ``x``
            holds there has no effect, but must be finite where the weights want gradients.

    Returns:
        y (T, B, D H), h of every step, the first direction's before the second's; h (D, B, H) after the last step. With
        T = 0 it is h0.

    Raises:
        ValueError: shapes that do not fit, or lengths outside [0, T].
        TypeError: not a float dtype, operands of different dtypes, lengths that are not int32 or int64.

    Reference:
        K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
        EMNLP 2014, section 2.3; r is applied after the product with W_hh, as in arXiv:1406.1078v1.
    """
    y, h = recurrent("gru", x, weights, reverse_weights, h0, None, lengths)
    return y, h
