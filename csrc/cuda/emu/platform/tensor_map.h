// Tensor maps: what a bulk tensor copy must know of a tensor in global memory. Emulated: kept as they were asked for.
// Kernels take them as `const __grid_constant__ TensorMap`.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>

#include "core/dtype.h"
#include "cuda/emu/tensor.h"

namespace drupe::cuda {

using TensorMap = emu::TensorMap;

// Innermost dimension first. `strides` are those of the outer dimensions, in bytes; element_strides may be left out.
// A box is dense in shared memory, its addresses swizzled within lines of `swizzle_bytes` (0, 32, 64 or 128).
struct TensorMapArgs {
  const void* base;
  Dtype dtype;
  std::span<const std::int64_t> sizes, strides;
  std::span<const int> box, element_strides = {};
  int swizzle_bytes = 0;
};

// Throws std::invalid_argument where the hardware cannot.
inline TensorMap make_tensor_map(const TensorMapArgs& args) {
  TensorMap map;
  map.base = static_cast<std::byte*>(const_cast<void*>(args.base));
  map.dtype = args.dtype;
  map.rank = static_cast<int>(args.sizes.size());
  if (map.rank > emu::kMaxRank) throw std::invalid_argument("[cuda] a tensor map has at most 5 dimensions");
  for (std::size_t d = 0; d < args.sizes.size(); ++d) {
    map.sizes[d] = static_cast<std::uint64_t>(args.sizes[d]);
    map.strides[d] = d == 0 ? size_of(args.dtype) : static_cast<std::uint64_t>(args.strides[d - 1]);
    map.box[d] = args.box.empty() ? 1 : static_cast<std::uint32_t>(args.box[d]);
    map.element_strides[d] = args.element_strides.empty() ? 1 : static_cast<std::uint32_t>(args.element_strides[d]);
  }
  map.swizzle_bytes = args.swizzle_bytes;
  emu::check_tensor_map(map);
  return map;
}

// For convolution: the tensor is (C, W, N), (C, W, H, N) or (C, W, H, D, N), a box `pixels` by `channels`. Pixels walk
// from lower to size + upper - 1 in each spatial dimension, by the element strides.
struct Im2colMapArgs {
  TensorMapArgs tensor;  // without a box
  std::span<const int> lower, upper;
  int channels, pixels;
};

inline TensorMap make_im2col_map(const Im2colMapArgs& args) {
  TensorMapArgs tensor = args.tensor;
  const int swizzle_bytes = tensor.swizzle_bytes;
  tensor.swizzle_bytes = 0;
  tensor.box = {};
  constexpr int kOnes[emu::kMaxRank] = {16, 1, 1, 1, 1};
  tensor.box = std::span(kOnes).first(tensor.sizes.size());
  TensorMap map = make_tensor_map(tensor);
  map.im2col = true;
  for (std::size_t d = 0; d < args.lower.size(); ++d) {
    map.lower[d] = args.lower[d];
    map.upper[d] = args.upper[d];
  }
  map.channels = static_cast<std::uint32_t>(args.channels);
  map.pixels = static_cast<std::uint32_t>(args.pixels);
  map.swizzle_bytes = swizzle_bytes;
  emu::check_tensor_map(map);
  return map;
}

}  // namespace drupe::cuda
