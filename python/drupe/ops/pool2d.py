"""Pooling over windows of images."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Call
from drupe.ops._window import Padding, Pair, from_nhwc, ints, paddings, to_nhwc


def max_pool2d(
    x: A,
    kernel_size: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    layout: str = "NCHW",
) -> A:
    """Maximum over each window, ``y[n, c, p, q] = max over r, s of x[n, c, p stride - top + r dilation, …]``.

    Padding is never the maximum; NaN in a window gives NaN. The gradient goes to the first of equal maxima (to the last
    NaN where there are several). A dilated window that no element falls into gives -infinity. The result is NHWC in
    memory in both layouts, as that of :func:`conv2d`, and so is an input that is not copied.

    Args:
        x: (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``; float dtypes, any strides, H and W at least 1.
        kernel_size: rows and columns of the window; one number for both.
        stride: rows and columns from one window to the next; ``kernel_size`` by default.
        padding: as for :func:`conv2d`; smaller than the window on every side.
        dilation: rows and columns from one element of the window to the next.
        ceil_mode: round the number of windows up, so that the last may reach beyond the padding; but it always begins
            in the image or the padding before it.
        layout: ``"NCHW"`` or ``"NHWC"``.

    Returns:
        (N, C, P, Q) or (N, P, Q, C), where P = (H + top + bottom - (dilation (R - 1) + 1)) // stride + 1, and Q alike.

    Raises:
        ValueError: another rank or layout, a window larger than the padded image, padding that is negative or not
            smaller than the window, a kernel, stride or dilation below 1.
        TypeError: a dtype that is not float, options that are not whole numbers.

    Reference:
        V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, chapter 3.
    """
    op = "max_pool2d"
    call = Call(op, x)
    (raw,) = call.raw
    kernel = ints(op, "kernel_size", kernel_size)
    steps = kernel if stride is None else ints(op, "stride", stride)
    window = kernel, steps, paddings(op, padding), ints(op, "dilation", dilation), ceil_mode
    y, taps = _C.max_pool2d(raw, *window, call.recorded, layout)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        dx = _C.max_pool2d_backward(to_nhwc(dy, layout), taps, _nhwc_shape(raw, layout), *window)
        return (from_nhwc(dx, layout),)

    return call.output(y, backward)


def avg_pool2d(
    x: A,
    kernel_size: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: str = "NCHW",
) -> A:
    """Mean over each window, ``y[n, c, p, q] = sum over r, s of x[n, c, p stride - top + r, …] / count``.

    Memory layout as :func:`max_pool2d`; sums are float32 for float16 and bfloat16.

    Args:
        x: (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``; float dtypes, any strides, H and W at least 1.
        kernel_size: rows and columns of the window; one number for both.
        stride: rows and columns from one window to the next; ``kernel_size`` by default.
        padding: as for :func:`conv2d`; smaller than the window on every side.
        ceil_mode: as for :func:`max_pool2d`.
        count_include_pad: divide by the elements of the window in the padded image; in the image alone otherwise.
        layout: ``"NCHW"`` or ``"NHWC"``.

    Returns:
        (N, C, P, Q) or (N, P, Q, C), where P = (H + top + bottom - R) // stride + 1, and Q alike.

    Raises:
        ValueError: as :func:`max_pool2d`.
        TypeError: as :func:`max_pool2d`.

    Reference:
        V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, chapter 3.
    """
    op = "avg_pool2d"
    call = Call(op, x)
    (raw,) = call.raw
    kernel = ints(op, "kernel_size", kernel_size)
    steps = kernel if stride is None else ints(op, "stride", stride)
    window = kernel, steps, paddings(op, padding), ceil_mode, count_include_pad
    y = _C.avg_pool2d(raw, *window, layout)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        dx = _C.avg_pool2d_backward(to_nhwc(dy, layout), _nhwc_shape(raw, layout), *window)
        return (from_nhwc(dx, layout),)

    return call.output(y, backward)


def adaptive_avg_pool2d(x: A, output_size: Pair, *, layout: str = "NCHW") -> A:
    """Mean over as many windows as asked for: rows ``[floor(p H / P), ceil((p + 1) H / P))``, and columns alike.

    Memory layout as :func:`max_pool2d`; sums are float32 for float16 and bfloat16.

    Args:
        x: (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``; float dtypes, any strides, H and W at least 1.
        output_size: (P, Q), or one number for both; 1 is the mean over the whole image.
        layout: ``"NCHW"`` or ``"NHWC"``.

    Returns:
        (N, C, P, Q) or (N, P, Q, C).

    Raises:
        ValueError: another rank or layout, an output size below 1.
        TypeError: a dtype that is not float, a size that is not a whole number.

    Reference:
        K. He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks", arXiv:1406.4729, section 2.2.
    """
    op = "adaptive_avg_pool2d"
    call = Call(op, x)
    (raw,) = call.raw
    y = _C.adaptive_avg_pool2d(raw, ints(op, "output_size", output_size), layout)

    def backward(dy: _C.Tensor) -> tuple[_C.Tensor]:
        dx = _C.adaptive_avg_pool2d_backward(to_nhwc(dy, layout), _nhwc_shape(raw, layout))
        return (from_nhwc(dx, layout),)

    return call.output(y, backward)


def _nhwc_shape(x: _C.Tensor, layout: str) -> tuple[int, ...]:
    if layout == "NHWC":
        return x.shape
    N, C, H, W = x.shape
    return N, H, W, C
