// Stochastic rounding (core/rounding.h): a pack of accumulators on its way to a 16-bit array.
#pragma once

#include "core/rounding.h"
#include "cuda/tile/philox.cuh"
#include "cuda/tile/row_groups.cuh"

namespace drupe::cuda {

// `place` counts from the start of the tensor whose numbers begin at `first_block` of the stream; with more than one
// element it is a multiple of 4.
template <class S, int kPack>
__device__ __forceinline__ void store_drawn(const WidePack<S, kPack>& p, const Rounding& rounding,
                                            std::uint64_t first_block, std::int64_t place, S* to) {
  const std::uint64_t block = first_block + static_cast<std::uint64_t>(place) / 4;
  if constexpr (kPack == 1) {
    const Words words = philox(rounding.seed, rounding.offset, block);
    const int k = static_cast<int>(place % 4);
    const std::uint32_t low = k % 2 ? words.word[1] : words.word[0], high = k % 2 ? words.word[3] : words.word[2];
    *to = round_stochastically<S>(p.element[0], (k < 2 ? low : high) >> 8);
  } else {
    Pack<S, kPack> pack;
#pragma unroll
    for (int k = 0; k < kPack; k += 4) {
      const Words words = philox(rounding.seed, rounding.offset, block + k / 4);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        pack.element[k + j] = round_stochastically<S>(p.element[k + j], words.word[j] >> 8);
      }
    }
    store_pack(to, pack);
  }
}

}  // namespace drupe::cuda
