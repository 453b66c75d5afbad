// Group normalisation: each sample's channels are normalised in `groups` groups of neighbours, over space as well.
//
//   y = (x - mean) rstd weight + bias,   rstd = 1 / sqrt(variance + eps), of each sample's group
//
//   x             (N, C, …) in layout "NCHW", (N, …, C) in "NHWC"   float dtypes; C divisible by groups
//   weight, bias  (C,)  optional; x's dtype, or float32 for 16-bit x
//   y             as x
//   mean, rstd    (N, groups), in the accumulator's dtype, for backward
//
// On the CPU the result has x's memory order where x is dense with its channels first or last, and otherwise its
// layout's. CUDA's kernels want the channels last: x in another order is copied, and the result has them last.
//
// Backward, n being the values per group, g = dy weight and sums over the group:
//   dx = rstd (g - sum(g) / n - xhat sum(g xhat) / n);  dweight = sum of dy xhat;  dbias = sum of dy, over N and space
// Wu & He 2018, "Group Normalization", section 3.1.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

// N x rows x C, the channels contiguous, or N x C x rows. Parameters and statistics have the accumulator's dtype.
struct GroupNormArgs {
  std::int64_t N, rows, C, groups;
  bool channels_first;  // never on CUDA
  const void* x;
  const void* weight;  // null where there is none, as bias
  const void* bias;
  const void* dy;  // backward only
  void* y;         // dx in backward
  void* mean;      // read in backward, as rstd
  void* rstd;
  void* dweight;  // backward only
  void* dbias;
  double eps;
  Dtype dtype;
};

namespace ops {

// (y, mean, rstd)
std::tuple<Tensor, Tensor, Tensor> group_norm(const Tensor& x, std::int64_t groups, const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias, double eps, const std::string& layout);
// (dx, dweight, dbias); the latter two have the dtype of `weight` and `bias` and are undefined without them.
std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor& dy, const Tensor& x,
                                                       const std::optional<Tensor>& weight,
                                                       const std::optional<Tensor>& bias, const Tensor& mean,
                                                       const Tensor& rstd, const std::string& layout);

}  // namespace ops

namespace cpu {
template <Isa>
void group_norm(const GroupNormArgs& args);
template <Isa>
void group_norm_backward(const GroupNormArgs& args);
}  // namespace cpu

namespace cuda {
void group_norm(const GroupNormArgs& args, Stream stream);
void group_norm_backward(const GroupNormArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
