// Where the elements of several tensors of one shape lie, given the index of the element in their common loop nest.
#pragma once

#include <cstdint>
#include <platform/device.cuh>

#include "core/loops.h"

namespace drupe::cuda {

// A divisor of indices. 64-bit division is a subroutine, around which registers spill.
struct Divisor {
  std::int64_t value = 1;
  double inverse = 1;

  Divisor() = default;
  explicit Divisor(std::int64_t value) : value(value), inverse(1.0 / static_cast<double>(value)) {}
};

// floor(index / divisor), 0 <= index < 2^53.
__device__ __forceinline__ std::int64_t quotient(std::int64_t index, std::int64_t divisor, double inverse) {
  // 32-bit division is faster, and most tensors are that small.
  if ((index | divisor) >> 32 == 0) return static_cast<std::uint32_t>(index) / static_cast<std::uint32_t>(divisor);
  const auto near = static_cast<std::int64_t>(static_cast<double>(index) * inverse);
  const std::int64_t rest = index - near * divisor;
  return rest < 0 ? near - 1 : rest >= divisor ? near + 1 : near;
}
__device__ __forceinline__ std::int64_t operator/(std::int64_t index, const Divisor& divisor) {
  return quotient(index, divisor.value, divisor.inverse);
}

// Strides count elements, outermost dimension first.
template <int kOperands>
struct Strided {
  int dims = 0;
  std::int64_t size = 1;
  std::int64_t extent[kMaxDims] = {};
  double inverse[kMaxDims] = {};  // of the extents
  std::int64_t stride[kOperands][kMaxDims] = {};

  Strided() = default;
  explicit Strided(const Loops& loops) : dims(loops.shape.size()) {
    for (int d = 0; d < dims; ++d) {
      extent[d] = loops.shape[d];
      inverse[d] = Divisor(extent[d]).inverse;
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
    const std::int64_t rest = quotient(index, extent, nest.inverse[d]);
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
