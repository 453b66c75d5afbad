"""Long short-term memory."""

from __future__ import annotations

from drupe.ops._call import A, Array
from drupe.ops._recurrent import Weights, recurrent


def lstm(
    x: A,
    weights: Weights,
    reverse_weights: Weights | None = None,
    *,
    h0: Array | None = None,
    c0: Array | None = None,
    lengths: Array | None = None,
) -> tuple[A, A, A]:
    """One layer of long short-term memory, in one direction or in both.

    At each step, from the states h and c of the one before::

        a = W_ih x_t + b_ih + W_hh h + b_hh               # in quarters i, f, g, o
        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g)
        c' = f * c + i * g;  h' = o * tanh(c')

    For float16 and bfloat16 each share of a gate is summed in float32 and rounded to the dtype (on the CPU that of h
    is not, nor are biases), and h is rounded at each step; c is float32 within the call.

    Args:
        x: (T, B, I), time first; float. Copied unless it is C-contiguous.
        weights: ``(weight_ih, weight_hh)`` or ``(weight_ih, weight_hh, bias_ih, bias_hh)``: (4 H, I), (4 H, H), (4 H,)
            and (4 H,), in the dtype of ``x``; a bias may be None.
        reverse_weights: the same for a second direction, which walks from the last step to the first.
        h0: (D, B, H), of D directions; zeros by default.
        c0: the same.
        lengths: (B,), int32 or int64, 0 to T: how many steps each sequence has; T by default. At later steps its states
            stay as they are and ``y`` is 0, so that the second direction starts at the sequence's own end. What ``x``
            holds there has no effect, but must be finite where the weights want gradients.

    Returns:
        y (T, B, D H), h of every step, the first direction's before the second's; h and c (D, B, H) after the last
        step. With T = 0 they are h0 and c0.

    Raises:
        ValueError: shapes that do not fit, or lengths outside [0, T].
        TypeError: not a float dtype, operands of different dtypes, lengths that are not int32 or int64.

    Reference:
        S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997; F. A. Gers,
        J. Schmidhuber, F. Cummins, "Learning to Forget: Continual Prediction with LSTM", Neural Computation 12(10),
        2000, section 3.
    """
    y, h, c = recurrent("lstm", x, weights, reverse_weights, h0, c0, lengths)
    return y, h, c
