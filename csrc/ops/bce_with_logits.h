// Binary cross entropy of logits z against targets t, element by element.
//
//   loss = weight (pos_weight t softplus(-z) + (1 - t) softplus(z)),   softplus(z) = log(1 + e^z)
//   reduction: "none", "sum", or "mean" over all elements (0 where there are none)
//
//   logits, targets     one shape; float dtypes, the targets' the same, or integers or bool. Usually 0 <= t <= 1
//   weight, pos_weight  broadcastable to that shape, optional, the logits' dtype
//   loss                that shape or (), in the accumulator's dtype
//
// Operands that are not contiguous, or broadcast, are copied. A term whose factor (t or 1 - t) is 0 is 0, so that
// infinite logits of the right sign cost nothing. Backward:
//   dz = weight ((1 - t) sigmoid(z) - pos_weight t sigmoid(-z)) dloss
//   dt = weight (pos_weight softplus(-z) - softplus(z)) dloss
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"
#include "ops/reduction.h"

namespace drupe {

// Contiguous arrays of `size` elements; loss and dloss have the accumulator's dtype.
struct BceArgs {
  std::int64_t size;
  const void* logits;
  const void* targets;
  const void* weight;  // null where there is none, as pos_weight
  const void* pos_weight;
  void* loss;         // `size` of them for "none", else one
  const void* dloss;  // backward only; as loss
  void* dlogits;      // backward only
  void* dtargets;     // backward only; null where not wanted
  Reduction reduction;
  Dtype dtype;
};

namespace ops {

Tensor bce_with_logits(const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& weight,
                       const std::optional<Tensor>& pos_weight, const std::string& reduction);
// (dlogits, dtargets); the latter is undefined unless wanted.
std::pair<Tensor, Tensor> bce_with_logits_backward(const Tensor& dloss, const Tensor& logits, const Tensor& targets,
                                                   const std::optional<Tensor>& weight,
                                                   const std::optional<Tensor>& pos_weight,
                                                   const std::string& reduction, bool want_dtargets);

}  // namespace ops

namespace cpu {
template <Isa>
void bce_with_logits(const BceArgs& args);
template <Isa>
void bce_with_logits_backward(const BceArgs& args);
}  // namespace cpu

namespace cuda {
void bce_with_logits(const BceArgs& args, Stream stream);
void bce_with_logits_backward(const BceArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
