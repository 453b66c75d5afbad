// Sliding windows along the two spatial dimensions of an image: what conv2d and the pools share.
//
//   out = (in + before + after - (dilation (kernel - 1) + 1)) / stride + 1, rounded down (up with ceil_mode, but
//         never with a last window that begins beyond the image and the padding before it)
#pragma once

#include <cstdint>
#include <string>
#include <variant>

#include "core/tensor.h"

namespace drupe {

// One spatial dimension. Window i covers the positions i * stride - before + r * dilation for r < kernel.
struct WindowAxis {
  std::int64_t kernel, stride, dilation;
  std::int64_t before, after;  // padding
  std::int64_t in, out;        // extents of the image and of the result
};

struct Window {
  WindowAxis h, w;
};

// stride and dilation: (both,) or (height, width). padding: (all,), (height, width) or (top, bottom, left, right);
// or "valid" (none), or "same": out = ceil(in / stride), the smaller half of the padding before the image.
struct WindowOptions {
  Dims stride{1};
  std::variant<Dims, std::string> padding = Dims{0};
  Dims dilation{1};
  bool ceil_mode = false;
};

// Throws std::invalid_argument, naming the op, for options that are out of range or a window beyond the padded image.
Window resolve_window(const char* op, const WindowOptions& options, std::int64_t height, std::int64_t width,
                      std::int64_t kernel_h, std::int64_t kernel_w);

// An image as (N, H, W, C): permuted from "NCHW", as it is for "NHWC"; C-contiguous, copied only where it is not.
// Throws std::invalid_argument for another rank or layout, TypeError for another dtype than float.
Tensor to_nhwc(const char* op, const char* name, const Tensor& image, const std::string& layout);
// The way back: a view, never a copy.
Tensor from_nhwc(const Tensor& image, const std::string& layout);

}  // namespace drupe
