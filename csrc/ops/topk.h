// The extreme elements along one axis, and where they are.
//
//   topk            the k largest (or smallest): values, and int64 indices
//   argmax argmin   the index of the first extreme element
//
// Any dtype. Of equal elements the one with the lower index comes first. NaN counts as the largest to topk, and as the
// extreme to argmax and argmin alike. An axis other than the last, or a strided x, costs a copy.
#pragma once

#include <string>
#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

struct TopkArgs {
  const void* x;          // (rows, size)
  void* values;           // (rows, k)
  std::int64_t* indices;  // (rows, k)
  std::int64_t rows, size, k;
  bool largest, sorted;
  Dtype dtype;
};

struct TopkBackwardArgs {
  const void* dy;               // (rows, k)
  const std::int64_t* indices;  // (rows, k), within [0, size)
  void* dx;                     // (rows, size), zero
  std::int64_t rows, size, k;
  Dtype dtype;
};

struct ArgExtremumArgs {
  const void* x;          // (rows, size)
  std::int64_t* indices;  // (rows,)
  std::int64_t rows, size;
  bool largest;
  Dtype dtype;
};

namespace ops {

// (values, indices). Unsorted, they are in the order of their indices.
std::pair<Tensor, Tensor> topk(const Tensor& x, std::int64_t k, std::int64_t axis, bool largest, bool sorted);
// dx, of extent `size` along the axis: dy where the indices say, zero elsewhere.
Tensor topk_backward(const Tensor& dy, const Tensor& indices, std::int64_t axis, std::int64_t size);
// "argmax" or "argmin".
Tensor arg_extremum(const std::string& name, const Tensor& x, std::int64_t axis, bool keepdims);

}  // namespace ops

namespace cpu {
template <Isa>
void topk(const TopkArgs& args);
template <Isa>
void topk_backward(const TopkBackwardArgs& args);
template <Isa>
void arg_extremum(const ArgExtremumArgs& args);
}  // namespace cpu

namespace cuda {
void topk(const TopkArgs& args, Stream stream);
void topk_backward(const TopkBackwardArgs& args, Stream stream);
void arg_extremum(const ArgExtremumArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
