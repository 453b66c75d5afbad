// Indices that must lie within an extent, wherever they are stored.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/cuda.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace drupe {

struct IndexRangeArgs {
  const void* indices;
  std::int64_t count, size;
  std::optional<std::int64_t> allowed;  // besides 0 to size - 1
  std::int64_t* remaining;  // zero; gets count - the position of the first index out of range, if there is one
  Dtype dtype;              // int32 or int64
};

}  // namespace drupe

namespace drupe::ops {

// For messages: "[3, 5]", where the position-th element of a tensor of this shape is, ...
std::string subscript(std::int64_t position, const Dims& shape);
// ... and the i-th element of a contiguous tensor, int32 or int64.
std::int64_t index_at(const Tensor& indices, std::int64_t i);

struct IndexAt {
  std::int64_t index, position;
};
// The first index that is neither in [0, size) nor `allowed`. Contiguous int32 or int64; a device is waited for.
std::optional<IndexAt> first_out_of_range(const Tensor& indices, std::int64_t size,
                                          std::optional<std::int64_t> allowed = {});

// While a graph is captured nobody can look. Has the graph look instead: `raise` is called with the first such index
// once it has run (see cuda::defer_check). Gives a copy of the indices in which those are 0, so that what reads it does
// no harm; size is above 0.
Tensor defer_range_check(const Tensor& indices, std::int64_t size, std::optional<std::int64_t> allowed,
                         cuda::Raise raise);

}  // namespace drupe::ops

namespace drupe::cuda {
void find_out_of_range(const IndexRangeArgs& args, Stream stream);
// Copies the indices, 0 for those out of range, and reports the first of them, ...
void report_out_of_range(const IndexRangeArgs& args, void* copy, const DeferredCheck& check, Stream stream);
// ... or reports what another kernel has found.
void report_remaining(const IndexRangeArgs& args, const DeferredCheck& check, Stream stream);
}  // namespace drupe::cuda
