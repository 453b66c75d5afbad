"""Two-dimensional convolution."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Array, Call
from drupe.ops._window import Padding, Pair, from_nhwc, ints, paddings, to_nhwc
from drupe.ops.activation import FROM_INPUT
from drupe.ops.pack_filters import PackedFilters


def conv2d(
    x: A,
    weight: Array | PackedFilters,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    activation: str | None = None,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> A:
    """Convolve images, ``activation(x * weight + bias + residual)``, where ``*`` is the cross-correlation.

    ``y[n, k, p, q] = sum over c, r, s of x[n, c, p stride - top + r dilation, q stride - left + s dilation]
    weight[k, c, r, s]``, with zeros outside of ``x``.

    The kernels work on NHWC memory. Whatever the layout, the result is NHWC in memory (with ``layout="NCHW"`` a
    permuted view of that: "channels last"), and an input that lies so already is not copied: in a chain of
    convolutions, normalisations and pools only the first input can be. Sums accumulate in float32 for float16 and
    bfloat16, in the dtype itself otherwise; where :func:`gemm` may take subnormal numbers as zeros, so may this, and
    round results to such zeros.

    Args:
        x: (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``; any strides. H and W at least 1.
        weight: (K, C / groups, R, S) in both layouts. Or one that :func:`pack_filters` packed: the same bits, sooner;
            no gradient flows to it.
        bias: (K,).
        residual: (N, K, P, Q), or (N, P, Q, K) with ``layout="NHWC"``: the shape of the result.
        stride: rows and columns from one window to the next; one number for both.
        padding: rows and columns of zeros on each side; (top, bottom, left, right) or ((top, bottom), (left, right))
            for unequal sides; ``"valid"`` for none; ``"same"`` for a result of ceil(H / stride) x ceil(W / stride): the
            padding needed for it depends on H and W when the stride is not 1, and the odd row or column comes last
            (TensorFlow's rule).
        dilation: rows and columns from one tap of the window to the next.
        groups: divides C and K; group g sees input channels [g C / groups, (g + 1) C / groups) alone.
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, ``"sigmoid"``, ``"tanh"`` or None.
        layout: ``"NCHW"`` or ``"NHWC"``, of ``x``, ``residual`` and the result.
        algorithm: how the CPU computes the result and the gradients of ``x`` and ``weight``. ``"direct"`` sums the
            products as written above. ``"winograd"`` is minimal filtering F(4 x 4, 3 x 3), with a quarter of the
            multiplications, for 3 x 3 windows of stride and dilation 1 and one group. Its rounding error is two to four
            times that of ``"direct"``, and goes by the largest numbers in a patch of 6 x 6 pixels: the 4 x 4 results
            that a patch gives share an error of about 1e-6 of the largest of them, those that should be 0 too, and a
            NaN, an infinity or an overflow makes NaN of all of them; in the gradient of ``weight`` this holds for the 9
            taps. For bfloat16, where the processor has its dot instruction, it is F(2 x 2, 3 x 3), with 4/9 of the
            multiplications, of transformed numbers rounded to bfloat16: the error is three times that of ``"direct"``
            in the mean and twice at the most, and the 2 x 2 results of a patch share about 2^-8 of the largest of them
            (the gradient of ``weight`` as in float32).
            ``"auto"`` takes the one that is expected to be faster for these sizes, the batch's among them, and
            ``"direct"`` for float64.

    Returns:
        (N, K, P, Q) or (N, P, Q, K), where P = (H + top + bottom - (dilation (R - 1) + 1)) // stride + 1, and Q alike.

    Raises:
        ValueError: shapes that do not fit, groups that do not divide the channels, a window larger than the padded
            image, a negative padding, a stride or dilation below 1, an unknown layout, padding, activation or
            algorithm, or one that does not fit.
        TypeError: a dtype that is not float, operands of different dtypes, options that are not whole numbers.

    Reference:
        V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, chapters 2, 4;
        A. Lavin, S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, section 4.
    """
    packed = weight if isinstance(weight, PackedFilters) else None
    call = Call("conv2d", x, weight if packed is None else packed.weight, bias, residual)
    rx, rweight, rbias, rresidual = call.raw
    if packed is not None:
        rweight = packed.raw
    pads = paddings("conv2d", padding)
    window = ints("conv2d", "stride", stride), pads, ints("conv2d", "dilation", dilation), groups
    name = activation or ""
    keep = name in FROM_INPUT and call.recorded
    image = rx if len(rx.shape) != 4 or layout not in ("NCHW", "NHWC") else from_nhwc(to_nhwc(rx, layout), layout)
    panels = None if packed is None else packed.packed
    y, pre = _C.conv2d(image, rweight, rbias, rresidual, *window, algorithm, name, keep, layout, panels)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor | None, ...]:
        dz = to_nhwc(dy, layout)
        if name:
            dz = _C.activation_backward(dz, to_nhwc(pre if keep else y, layout), name)
        dx = dweight = dbias = dresidual = None
        nhwc = to_nhwc(image, layout)
        if call.needs_grad(0):
            dx = from_nhwc(_C.conv2d_backward_input(dz, rweight, nhwc.shape, *window, algorithm), layout)
        if call.needs_grad(1):
            dweight = _C.conv2d_backward_weight(dz, nhwc, rweight.shape, *window, algorithm)
        if call.needs_grad(2):
            dbias = _C.conv2d_backward_bias(dz)
        if call.needs_grad(3):
            dresidual = from_nhwc(dz, layout)
        return dx, dweight, dbias, dresidual

    return call.output(y, backward)
