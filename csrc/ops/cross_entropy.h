// Cross entropy of logits against class labels, fused with log-softmax.
//
//   p_c = e^z_c / sum_k e^z_k,   W = sum_c weight_c,   s = label_smoothing
//   loss = -(1 - s) weight_y log p_y - (s / C) sum_c weight_c log p_c,   0 where y = ignore_index
//   reduction: "none" (...); "sum"; "mean" = sum of losses / sum of weight_y over the labels that are not ignored, 0 if
//   that is 0
//
//   logits  (..., C)  float dtypes; copied unless contiguous
//   labels  (...)     int32 or int64, in [0, C) or ignore_index; anything else is std::out_of_range, found beforehand
//   weight  (C,)      optional; the logits' dtype, or float32 for 16-bit logits
//   loss    (...) or (), in the accumulator's dtype
//   sums    (..., 2), the maximum m of z and sum e^(z - m), in the accumulator's dtype, for backward; undefined numbers
//           where ignored. Apart they stay exact where m swamps the logarithm of the sum.
//   total   (), float64: what the mean divides by
//
// A logit of -infinity is a class of probability 0; a row of nothing else, or one with +infinity or NaN, gives NaN.
// Backward: dz_c = dloss ((1 - s) weight_y (p_c - [c = y]) + (s / C) (W p_c - weight_c)), over the total for "mean".
// Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"; Szegedy et al. 2016, section 7 (smoothing).
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"
#include "ops/reduction.h"

namespace drupe {

// rows x C contiguous logits. weight, loss, dloss and sums have the accumulator's dtype.
struct CrossEntropyArgs {
  std::int64_t rows, C;
  const void* logits;
  const void* labels;
  const void* weight;  // null where there is none
  void* loss;          // rows of them for "none", else one
  const void* dloss;   // backward only; as loss
  void* sums;          // read in backward, as total
  double* total;
  void* dlogits;  // backward only
  std::int64_t ignore_index;
  double label_smoothing;
  double weight_sum;  // W; a device's kernels sum given weights themselves
  Reduction reduction;
  Dtype dtype;
  Dtype label_dtype;
};

struct CrossEntropyOptions {
  std::int64_t ignore_index = -100;
  double label_smoothing = 0;
  std::string reduction = "mean";
};

namespace ops {

// (loss, sums, total)
std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& logits, const Tensor& labels,
                                                 const std::optional<Tensor>& weight,
                                                 const CrossEntropyOptions& options);
Tensor cross_entropy_backward(const Tensor& dloss, const Tensor& logits, const Tensor& labels,
                              const std::optional<Tensor>& weight, const Tensor& sums, const Tensor& total,
                              const CrossEntropyOptions& options);

}  // namespace ops

namespace cpu {
template <Isa>
void cross_entropy(const CrossEntropyArgs& args);
template <Isa>
void cross_entropy_backward(const CrossEntropyArgs& args);
}  // namespace cpu

namespace cuda {
void cross_entropy(const CrossEntropyArgs& args, Stream stream);
void cross_entropy_backward(const CrossEntropyArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
