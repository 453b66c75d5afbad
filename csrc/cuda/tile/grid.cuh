// Grids of more blocks than one dimension holds.
#pragma once

#include <cstdint>
#include <platform/device.cuh>
#include <platform/launch.cuh>

namespace drupe::cuda {

// Some more than asked for where it needs two dimensions: kernels compare block_number() with what they need.
inline Dim3 grid_of(std::int64_t blocks) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  if (blocks <= kMost) return {static_cast<unsigned>(blocks)};
  return {static_cast<unsigned>(kMost), static_cast<unsigned>((blocks + kMost - 1) / kMost)};
}

__device__ __forceinline__ std::int64_t block_number() {
  return static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
}

}  // namespace drupe::cuda
