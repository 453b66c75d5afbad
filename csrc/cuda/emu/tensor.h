// The emulated tensor map: what cp.async.bulk.tensor reads of a CUtensorMap, with the constraints of
// cuTensorMapEncode*.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace drupe::emu {

inline constexpr int kMaxRank = 5;

struct TensorMap {
  std::byte* base = nullptr;
  Dtype dtype = Dtype::f32;
  int rank = 0;
  std::uint64_t sizes[kMaxRank] = {};    // innermost first
  std::uint64_t strides[kMaxRank] = {};  // in bytes
  std::uint32_t box[kMaxRank] = {};
  std::uint32_t element_strides[kMaxRank] = {};
  int swizzle_bytes = 0;  // 0, 32, 64 or 128
  // im2col: the box is `pixels` of the bounding box by `channels`.
  bool im2col = false;
  int lower[3] = {}, upper[3] = {};
  std::uint32_t channels = 0, pixels = 0;
};

// Throws std::invalid_argument where the driver would refuse.
void check_tensor_map(const TensorMap& map);

// Where the byte at an address of shared memory lies with a swizzle of 32, 64 or 128 bytes (0: none).
inline std::size_t swizzle(std::size_t address, int bytes) {
  const std::size_t mask = bytes == 128 ? 7 : bytes == 64 ? 3 : bytes == 32 ? 1 : 0;
  return address ^ ((address >> 7 & mask) << 4);
}

}  // namespace drupe::emu
