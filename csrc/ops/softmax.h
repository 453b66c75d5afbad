// Softmax and its logarithm along one axis:
//
//   softmax      y = e^(x - max x) / sum e^(x - max x)
//   log_softmax  y = x - max x - log(sum e^(x - max x))
//
//   x, y   (..., N, ...)   float dtypes; sums in float32 for float16 and bfloat16, in the dtype itself otherwise
//
// On the CPU a float32 exponential has a relative error below 1.7e-7 + 2.5e-9 (max x - x).
//
// As in NumPy and SciPy, a NaN or +infinity makes its row NaN, and so does a row of nothing but -infinity (attention,
// where such a row is a fully masked one, gives zeros). A -infinity among finite numbers has probability 0.
//
// Backward, from y alone:  softmax  dx = y (dy - sum(y dy))     log_softmax  dx = dy - e^y sum(dy)
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

// All operands are contiguous (outer, size, inner); the softmax runs along `size`.
struct SoftmaxArgs {
  const void* x;   // backward: y
  const void* dy;  // backward only
  void* y;         // backward: dx
  std::int64_t outer, size, inner;
  bool log;
  Dtype dtype;
};

namespace ops {

// `axis` in [-ndim, ndim), IndexError otherwise. y is fresh and contiguous; an x that is not contiguous is copied.
Tensor softmax(const Tensor& x, std::int64_t axis, bool log);
Tensor softmax_backward(const Tensor& dy, const Tensor& y, std::int64_t axis, bool log);

}  // namespace ops

namespace cpu {
template <Isa>
void softmax(const SoftmaxArgs& args);
template <Isa>
void softmax_backward(const SoftmaxArgs& args);
}  // namespace cpu

namespace cuda {
void softmax(const SoftmaxArgs& args, Stream stream);
void softmax_backward(const SoftmaxArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
