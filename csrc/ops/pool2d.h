// Pooling over windows of an image, each channel by itself.
//
//   max_pool2d           y[n, p, q, c] = max over the window's elements; padding is never one of them
//   avg_pool2d           the mean over the window's elements; padding counts as zeros with count_include_pad (but what
//                        ceil_mode adds beyond the padding does not)
//   adaptive_avg_pool2d  the mean over rows [floor(p H / P), ceil((p + 1) H / P)) and columns alike
//
//   x  (N, C, H, W), or (N, H, W, C) with layout "NHWC"; float dtypes, any strides, H and W at least 1
//   y  alike with P and Q; fresh, NHWC in memory in both layouts
//
// NaN in a window gives NaN. The gradient of a maximum goes to its first element (to its last NaN). A dilated window
// that no element falls into has the maximum -infinity and no gradient. Sums are float32 for float16 and bfloat16.
#pragma once

#include <string>
#include <utility>

#include "core/quotient.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"
#include "ops/window.h"

namespace drupe {

// Images are NHWC and contiguous.
struct MaxPoolArgs {
  std::int64_t N, C;
  WindowAxis h, w;
  const void* x;   // forward only
  const void* dy;  // backward only
  void* out;       // y, or dx
  void* taps;      // per element of y, r S + s of the maximum; uint8, or int32 where the window needs it; may be null
  bool wide_taps;  // int32
  Dtype dtype;
};

// Output i averages the inputs [begin(i), end(i)) with the divisor count(i); input i is averaged by the outputs
// [first(i), last(i)).
struct AverageRule {
  WindowAxis window;  // `in` and `out` alone where adaptive
  bool adaptive, count_include_pad;

  constexpr std::int64_t begin(std::int64_t i) const {
    if (adaptive) return quotient(i * window.in, window.out);
    const std::int64_t at = i * window.stride - window.before;
    return at < 0 ? 0 : at;
  }
  constexpr std::int64_t end(std::int64_t i) const {
    if (adaptive) return quotient_up((i + 1) * window.in, window.out);
    const std::int64_t at = i * window.stride - window.before + window.kernel;
    return at < window.in ? at : window.in;
  }
  constexpr std::int64_t count(std::int64_t i) const {
    if (!count_include_pad) return end(i) - begin(i);
    const std::int64_t room = window.in + window.after - (i * window.stride - window.before);
    return room < window.kernel ? room : window.kernel;
  }
  constexpr std::int64_t first(std::int64_t i) const {
    if (adaptive) return quotient(i * window.out, window.in);
    const std::int64_t reach = i + window.before - window.kernel + 1;
    return reach <= 0 ? 0 : quotient_up(reach, window.stride);
  }
  constexpr std::int64_t last(std::int64_t i) const {
    if (adaptive) return quotient_up((i + 1) * window.out, window.in);
    const std::int64_t past = quotient(i + window.before, window.stride) + 1;
    return past < window.out ? past : window.out;
  }
};

// A rule's tables.
struct AveragePoolAxis {
  std::int64_t in, out;
  const std::int64_t *begin, *end, *count;
  const std::int64_t *first, *last;
};

// Axis: AveragePoolAxis on the CPU, AverageRule on a device.
template <class Axis>
struct AveragePool {
  std::int64_t N, C;
  Axis h, w;
  const void* from;  // x, or dy
  void* to;          // y, or dx
  Dtype dtype;
};
using AveragePoolArgs = AveragePool<AveragePoolAxis>;

namespace ops {

// `kernel` is (both,) or (height, width); padding must be smaller than the window. The second result, for the backward
// pass, is undefined unless asked for: an (N, P, Q, C) tensor of each maximum's position in its window.
std::pair<Tensor, Tensor> max_pool2d(const Tensor& x, const Dims& kernel, const WindowOptions& options, bool keep_taps,
                                     const std::string& layout);
Tensor avg_pool2d(const Tensor& x, const Dims& kernel, const WindowOptions& options, bool count_include_pad,
                  const std::string& layout);
// `output_size` is (both,) or (P, Q).
Tensor adaptive_avg_pool2d(const Tensor& x, const Dims& output_size, const std::string& layout);

// dx (N, H, W, C) from dy (N, P, Q, C).
Tensor max_pool2d_backward(const Tensor& dy, const Tensor& taps, const Dims& x_shape, const Dims& kernel,
                           const WindowOptions& options);
Tensor avg_pool2d_backward(const Tensor& dy, const Dims& x_shape, const Dims& kernel, const WindowOptions& options,
                           bool count_include_pad);
Tensor adaptive_avg_pool2d_backward(const Tensor& dy, const Dims& x_shape);

}  // namespace ops

namespace cpu {
template <Isa>
void max_pool2d(const MaxPoolArgs& args);
template <Isa>
void max_pool2d_backward(const MaxPoolArgs& args);
template <Isa>
void average_pool2d(const AveragePoolArgs& args);
template <Isa>
void average_pool2d_backward(const AveragePoolArgs& args);
}  // namespace cpu

namespace cuda {
void max_pool2d(const MaxPoolArgs& args, Stream stream);
void max_pool2d_backward(const MaxPoolArgs& args, Stream stream);
void average_pool2d(const AveragePool<AverageRule>& args, Stream stream);
void average_pool2d_backward(const AveragePool<AverageRule>& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
