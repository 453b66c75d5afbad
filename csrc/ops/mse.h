// Squared error: (a - b)^2 of each element; reduction "none", "sum", or "mean" over all elements (0 where there are
// none).
//
//   a, b  one shape, one float dtype; copied unless contiguous
//   loss  that shape or (), in the accumulator's dtype
//
// Backward: da = 2 (a - b) dloss, over the number of elements for "mean"; db = -da.
#pragma once

#include <string>
#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"
#include "ops/reduction.h"

namespace drupe {

// Contiguous arrays of `size` elements; loss and dloss have the accumulator's dtype.
struct MseArgs {
  std::int64_t size;
  const void* a;
  const void* b;
  void* loss;         // `size` of them for "none", else one
  const void* dloss;  // backward only; as loss
  void* da;           // backward only; null where not wanted, as db
  void* db;
  Reduction reduction;
  Dtype dtype;
};

namespace ops {

Tensor mse(const Tensor& a, const Tensor& b, const std::string& reduction);
// (da, db); each undefined unless wanted.
std::pair<Tensor, Tensor> mse_backward(const Tensor& dloss, const Tensor& a, const Tensor& b,
                                       const std::string& reduction, bool want_da, bool want_db);

}  // namespace ops

namespace cpu {
template <Isa>
void mse(const MseArgs& args);
template <Isa>
void mse_backward(const MseArgs& args);
}  // namespace cpu

namespace cuda {
void mse(const MseArgs& args, Stream stream);
void mse_backward(const MseArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
