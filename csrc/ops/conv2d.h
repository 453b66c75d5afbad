// Two-dimensional convolution (cross-correlation, as everywhere in deep learning) with a fused epilogue:
//
//   y[n, p, q, k] = activation(sum over r, s, c of x[n, h, w, c] weight[k, c, r, s] + bias[k] + residual[n, p, q, k])
//   h = p stride_h - top + r dilation_h,  w = q stride_w - left + s dilation_w;  x is zero outside
//
//   x         (N, C, H, W), or (N, H, W, C) with layout "NHWC"              float dtypes, all operands alike
//   weight    (K, C / groups, R, S) in both layouts
//   bias      (K,)                                                         optional
//   residual  (N, K, P, Q), or (N, P, Q, K)                                optional
//   y         as residual; fresh, NHWC in memory in both layouts
//
// Group g takes channels [g C / groups, (g + 1) C / groups) to [g K / groups, (g + 1) K / groups). Any strides are
// accepted; an image that is not NHWC in memory is copied once. Sums accumulate in float32 for float16 and bfloat16, in
// the dtype itself otherwise, in an order that depends on the shapes alone. N = 0 gives an empty y, H or W = 0 an
// error.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"
#include "ops/activation.h"
#include "ops/gemm.h"
#include "ops/window.h"

namespace drupe {

// How the CPU computes y and the gradients. `automatic` takes minimal filtering (cpu/winograd.h) for float32
// and narrower where that is expected to be faster.
enum class Conv2dAlgorithm : std::uint8_t { automatic, direct, winograd };

// How a packed weight lies: as pack_gemm writes the K x (R S C) matrix, or transformed for minimal filtering.
enum class FilterForm : std::uint8_t { none, matrix, transformed };

// All operands are contiguous, images NHWC. Each function names those that it reads, and what `out` is.
struct Conv2dArgs {
  std::int64_t N, C, K, groups;
  WindowAxis h, w;
  const void* x = nullptr;
  const void* weight = nullptr;
  const void* dy = nullptr;
  void* out = nullptr;
  const void* bias = nullptr;
  const void* residual = nullptr;
  void* pre_activation = nullptr;  // where to keep the activation's input, laid out as y
  Activation activation = Activation::none;
  Conv2dAlgorithm algorithm = Conv2dAlgorithm::automatic;
  Dtype dtype;
  const void* panels = nullptr;  // the weight packed, for one group, in this form
  FilterForm form = FilterForm::none;

  // Whether it is a product of the pixels as they lie.
  bool pointwise() const {
    const auto plain = [](const WindowAxis& axis) {
      return axis.kernel == 1 && axis.stride == 1 && axis.before == 0 && axis.after == 0;
    };
    return groups == 1 && plain(h) && plain(w);
  }
};

// A weight (K, C / groups, R, S), contiguous, and a copy in the order in which this processor's kernels read it.
struct PackedFilters {
  Tensor weight;
  PackedMatrix matrix;  // without panels where there is nothing to gain; without a matrix where that is a copy too
  FilterForm form = FilterForm::none;  // of the panels
};

struct Conv2dOptions {
  WindowOptions window;
  std::int64_t groups = 1;
  std::string algorithm = "auto";  // or "direct", or "winograd", for a 3 x 3 window of stride and dilation 1, one group
  std::string activation;
  bool keep_pre_activation = false;  // give the activation's input as the second result
  std::string layout = "NCHW";
  std::optional<PackedFilters> packed;  // the weight, packed before: the same result, without packing it again
};

namespace ops {

// (y, pre-activation); the second is undefined unless asked for.
std::pair<Tensor, Tensor> conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                 const std::optional<Tensor>& residual, const Conv2dOptions& options);

// For forward convolutions with these options, whatever the images' sizes. Changes of the weight do not reach the copy.
PackedFilters pack_filters(const Tensor& weight, const Conv2dOptions& options);

// The gradients, of a convolution without epilogue. Images are (N, H, W, C), whatever options.layout says.
Tensor conv2d_backward_input(const Tensor& dy, const Tensor& weight, const Dims& x_shape, const Conv2dOptions& options);
Tensor conv2d_backward_weight(const Tensor& dy, const Tensor& x, const Dims& weight_shape,
                              const Conv2dOptions& options);
// The sum of dy over all but its last dimension.
Tensor conv2d_backward_bias(const Tensor& dy);

}  // namespace ops

namespace cpu {
template <Isa>
void conv2d(const Conv2dArgs& args);  // x, weight, epilogue -> y
template <Isa>
FilterForm conv2d_reads(const Conv2dArgs& args);  // the form in which conv2d would read a packed weight of these sizes
// Writes args.weight as it is to lie transformed, if `panels` is given, and returns how many bytes these are.
template <Isa>
std::int64_t transform_filters(const Conv2dArgs& args, void* panels);
template <Isa>
void conv2d_backward_input(const Conv2dArgs& args);  // dy, weight -> dx
template <Isa>
void conv2d_backward_weight(const Conv2dArgs& args);  // dy, x -> dw
template <Isa>
void conv2d_backward_bias(const Conv2dArgs& args);  // dy as (N, K) -> db (K,)
}  // namespace cpu

namespace cuda {
void conv2d(const Conv2dArgs& args, Stream stream);
void conv2d_backward_input(const Conv2dArgs& args, Stream stream);
void conv2d_backward_weight(const Conv2dArgs& args, Stream stream);
void conv2d_backward_bias(const Conv2dArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
