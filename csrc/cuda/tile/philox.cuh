// Philox4x32-10 (Salmon et al. 2011): four random words from a counter and a key.
#pragma once

#include <cstdint>
#include <platform/device.cuh>

namespace drupe::cuda {

struct Words {
  std::uint32_t word[4];
};

// Block `block` of the stream (seed, offset).
__device__ __forceinline__ Words philox(std::uint64_t seed, std::uint64_t offset, std::uint64_t block) {
  Words c{static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
          static_cast<std::uint32_t>(offset), static_cast<std::uint32_t>(offset >> 32)};
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xd2511f53u} * c.word[0];
    const std::uint64_t p1 = std::uint64_t{0xcd9e8d57u} * c.word[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c.word[1] ^ key0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c.word[3] ^ key1, static_cast<std::uint32_t>(p0)};
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return c;
}

}  // namespace drupe::cuda
