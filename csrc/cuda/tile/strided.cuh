// Where the elements of several tensors of one shape lie, given the index of the element in their common loop nest.
#pragma once

#include <cstdint>
#include <platform/device.cuh>

#include "core/loops.h"

namespace drupe::cuda {

// Strides count elements, outermost dimension first.
template <int kOperands>
struct Strided {
  int dims = 0;
  std::int64_t size = 1;
  std::int64_t extent[kMaxDims] = {};
  std::int64_t stride[kOperands][kMaxDims] = {};

  Strided() = default;
  explicit Strided(const Loops& loops) : dims(loops.shape.size()) {
    for (int d = 0; d < dims; ++d) {
      extent[d] = loops.shape[d];
      size *= extent[d];
      for (int k = 0; k < kOperands; ++k) stride[k][d] = loops.strides[static_cast<std::size_t>(k)][d];
    }
  }

  // Whether every operand is walked one element after the other (or stands still, where it is one element).
  bool is_flat() const {
    if (dims > 1) return false;
    for (int k = 0; k < kOperands; ++k) {
      if (dims == 1 && stride[k][0] != 1) return false;
    }
    return true;
  }
};

template <int kOperands>
struct Offsets {
  std::int64_t at[kOperands];
};

template <int kOperands>
__device__ __forceinline__ Offsets<kOperands> locate(const Strided<kOperands>& nest, std::int64_t index) {
  Offsets<kOperands> offsets{};
  for (int d = nest.dims - 1; d > 0; --d) {
    const std::int64_t extent = nest.extent[d];
    // 32-bit division is several times faster, and most tensors are that small.
    const std::int64_t rest = (index | extent) >> 32 == 0
                                  ? static_cast<std::uint32_t>(index) / static_cast<std::uint32_t>(extent)
                                  : index / extent;
    const std::int64_t along = index - rest * extent;
#pragma unroll
    for (int k = 0; k < kOperands; ++k) offsets.at[k] += along * nest.stride[k][d];
    index = rest;
  }
  if (nest.dims > 0) {
#pragma unroll
    for (int k = 0; k < kOperands; ++k) offsets.at[k] += index * nest.stride[k][0];
  }
  return offsets;
}

}  // namespace drupe::cuda
