// layer_norm and rms_norm: each row, which is the trailing `ndim` dimensions of h = x + residual, is normalised.
//
//   layer_norm  y = (h - mean(h)) rstd weight + bias,   rstd = 1 / sqrt(mean((h - mean(h))^2) + eps)
//   rms_norm    y = h rstd weight,                      rstd = 1 / sqrt(mean(h^2) + eps)
//
//   x         (..., D…), D… being the `ndim` normalised extents    float dtypes; copied unless contiguous
//   residual  as x                                                 optional; h is summed in the accumulator's dtype
//   weight    (D…), bias (D…)                                      optional; x's dtype, or float32 for 16-bit x
//   y         as x, contiguous
//   mean, rstd  (...), in the accumulator's dtype, for backward; rms_norm has no mean
//
// The mean's rounding error is carried along, so that rows of large mean and small variance come out right. A row of no
// elements gives nothing. Backward:
//   g = dy weight;  dx = rstd (g - mean(g) - xhat mean(g xhat)), without the middle term for rms_norm; dresidual = dx
//   dweight = sum over rows of dy xhat;  dbias = sum over rows of dy
// Ba et al. 2016, "Layer Normalization", section 3; Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".
#pragma once

#include <optional>
#include <tuple>
#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

// `rows` contiguous rows of `size` elements. Parameters, their gradients, mean and rstd have the accumulator's dtype.
struct RowNormArgs {
  std::int64_t rows, size;
  const void* x;
  const void* residual;  // null where there is none, as weight and bias
  const void* weight;
  const void* bias;
  const void* dy;  // backward only
  void* y;         // dx in backward
  void* mean;      // read in backward; unused where not centered, as bias and dbias
  void* rstd;
  void* dweight;  // backward only
  void* dbias;
  double eps;
  bool centered;  // layer_norm
  Dtype dtype;
};

namespace ops {

// (y, mean, rstd)
std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                                              double eps, int ndim);
// (dx, dweight, dbias); the latter two have the dtype of `weight` and `bias` and are undefined without them.
std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& dy, const Tensor& x,
                                                       const std::optional<Tensor>& weight,
                                                       const std::optional<Tensor>& bias,
                                                       const std::optional<Tensor>& residual, const Tensor& mean,
                                                       const Tensor& rstd, int ndim);
// (y, rstd)
std::pair<Tensor, Tensor> rms_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                   const std::optional<Tensor>& residual, double eps, int ndim);
// (dx, dweight)
std::pair<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& weight,
                                            const std::optional<Tensor>& residual, const Tensor& rstd, int ndim);

}  // namespace ops

namespace cpu {
template <Isa>
void row_norm(const RowNormArgs& args);
template <Isa>
void row_norm_backward(const RowNormArgs& args);
}  // namespace cpu

namespace cuda {
void row_norm(const RowNormArgs& args, Stream stream);
void row_norm_backward(const RowNormArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
