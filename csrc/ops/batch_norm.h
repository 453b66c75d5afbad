// Batch normalisation: each channel is normalised over all other dimensions.
//
//   y = (x - mean) rstd weight + bias,   rstd = 1 / sqrt(variance + eps)
//   training:  mean and (biased) variance of x itself; then, in place, with the unbiased variance,
//              running_mean = (1 - momentum) running_mean + momentum mean,   running_var alike
//   else:      running_mean and running_var
//
//   x                         (N, C, …) in layout "NCHW", (N, …, C) in "NHWC"   float dtypes
//   weight, bias              (C,)  optional; x's dtype, or float32 for 16-bit x
//   running_mean, running_var (C,)  in the accumulator's dtype; both or none (then training only)
//   y                         as x; its memory has the channels last, whatever the layout
//   mean, rstd                (C,), in the accumulator's dtype, for backward
//
// Inside, the channels lie last: x in "NCHW" is copied unless that is its memory order already. Training needs more
// than one value per channel (std::invalid_argument); N = 0 gives nothing. Backward, n being the values per channel:
//   training:  dx = weight rstd (dy - sum(dy) / n - xhat sum(dy xhat) / n);  else  dx = weight rstd dy
//   dweight = sum(dy xhat);  dbias = sum(dy)
// Ioffe & Szegedy 2015, "Batch Normalization", algorithms 1 and 2.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

// rows x C, the channels contiguous. Parameters and statistics have the accumulator's dtype.
struct BatchNormArgs {
  std::int64_t rows, C;
  const void* x;
  const void* weight;  // null where there is none, as bias and the running statistics
  const void* bias;
  const void* dy;  // backward only
  void* y;         // dx in backward
  void* running_mean;
  void* running_var;
  std::int64_t running_mean_stride, running_var_stride;
  void* mean;  // read in backward, as rstd
  void* rstd;
  void* dweight;  // backward only
  void* dbias;
  double momentum, eps;
  bool training;
  Dtype dtype;
};

struct BatchNormOptions {
  bool training = false;
  double momentum = 0.1;
  double eps = 1e-5;
  std::string layout = "NCHW";
};

namespace ops {

// (y, mean, rstd)
std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias,
                                              const std::optional<Tensor>& running_mean,
                                              const std::optional<Tensor>& running_var,
                                              const BatchNormOptions& options);
// (dx, dweight, dbias); the latter two have the dtype of `weight` and `bias` and are undefined without them.
std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& dy, const Tensor& x,
                                                       const std::optional<Tensor>& weight,
                                                       const std::optional<Tensor>& bias, const Tensor& mean,
                                                       const Tensor& rstd, bool training, const std::string& layout);

}  // namespace ops

namespace cpu {
template <Isa>
void batch_norm(const BatchNormArgs& args);
template <Isa>
void batch_norm_backward(const BatchNormArgs& args);
}  // namespace cpu

namespace cuda {
void batch_norm(const BatchNormArgs& args, Stream stream);
void batch_norm_backward(const BatchNormArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
