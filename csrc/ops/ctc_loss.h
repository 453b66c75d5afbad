// Connectionist temporal classification: the negative log-likelihood of label sequences, summed over all their
// alignments, fused with log-softmax. The gradient is found in the same call.
//
//   p_t = softmax(logits[t, b]);  an alignment of labels y is a sequence of T_b classes that gives y once equal
//   neighbours are merged and blanks are dropped
//   loss_b = -log sum over alignments a of y_b of prod_{t < T_b} p_t[a_t]
//   gradient[t, b, c] = p_t[c] - P(a_t = c | y_b), 0 for t >= T_b
//   reduction: "none" (B,); "sum"; "mean" = sum_b loss_b / max(1, L_b) / B, 0 where B is 0
//
//   logits          (T, B, C)  float dtypes; copied unless contiguous. Log-probabilities are logits of themselves.
//   targets         (B, L), of which the first L_b count, or (sum of L_b,), one after the other; int32 or int64. Those
//                   that count lie in [0, C) and are not `blank`: std::out_of_range, found beforehand
//   input_lengths   (B,)       int32 or int64, T_b, in [0, T]; T where left out
//   target_lengths  (B,)       int32 or int64, L_b, in [0, L]; L where left out
//   loss            (B,) or (), in the accumulator's dtype
//   gradient        (T, B, C), in the accumulator's dtype, with the reduction's factor, for backward
//
// Labels that no alignment of T_b steps gives (L_b and one more for each pair of equal neighbours exceed T_b, or a
// probability is 0) have an infinite loss, and a gradient of NaN; with zero_infinity both are 0. So has a loss above
// 1e37 in float32. A row with NaN, +infinity or nothing but -infinity at a step that counts gives NaN.
// Graves et al. 2006, "Connectionist Temporal Classification". Worklog: bench/worklog/ctc_loss.md.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"
#include "ops/reduction.h"

namespace drupe {

struct CtcLossArgs {
  std::int64_t T, B, C, L;  // L: at least the longest target's length
  const void* logits;
  const std::int64_t* labels;   // row b begins at offsets[b]; a device's kernels leave wrong ones alone
  const std::int64_t* offsets;  // or null, at b label_stride
  std::int64_t label_stride;
  const std::int64_t* input_lengths;
  const std::int64_t* target_lengths;
  void* loss;      // B of them for "none", else one
  void* gradient;  // null where not wanted
  std::int64_t blank;
  Reduction reduction;
  bool zero_infinity;
  Dtype dtype;

  // What row b's loss counts in the result.
  constexpr double weight(std::int64_t length) const {
    return reduction == Reduction::mean ? 1.0 / static_cast<double>((length > 1 ? length : 1) * B) : 1.0;
  }
};

struct CtcLossOptions {
  std::int64_t blank = 0;
  std::string reduction = "mean";
  bool zero_infinity = false;
  bool want_gradient = false;
};

// What of padded targets counts, for a check that a graph makes: labels[b, l] where l < lengths[b], with kBlankLabel
// for the blank, else 0.
inline constexpr std::int64_t kBlankLabel = std::numeric_limits<std::int64_t>::min();
struct CtcLabelsArgs {
  std::int64_t B, L;
  const std::int64_t* targets;
  const std::int64_t* lengths;
  std::int64_t* labels;
  std::int64_t blank;
};

namespace ops {

// (loss, gradient if wanted)
std::pair<Tensor, std::optional<Tensor>> ctc_loss(const Tensor& logits, const Tensor& targets,
                                                  const std::optional<Tensor>& input_lengths,
                                                  const std::optional<Tensor>& target_lengths,
                                                  const CtcLossOptions& options);
// dlogits, of `like`'s dtype: dloss (B,) or () times the gradient.
Tensor ctc_loss_backward(const Tensor& dloss, const Tensor& gradient, const Tensor& like);

}  // namespace ops

namespace cpu {
template <Isa>
void ctc_loss(const CtcLossArgs& args);
}  // namespace cpu

namespace cuda {
void ctc_loss(const CtcLossArgs& args, Stream stream);
void ctc_labels(const CtcLabelsArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
