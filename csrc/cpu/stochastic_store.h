// Floats on their way to a 16-bit array, rounded stochastically (core/rounding.h): a few Philox blocks at a time.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/rounding.h"
#include "cpu/lanes.h"
#include "cpu/philox.h"

namespace drupe::cpu {

// Places count from the tensor's start, of whose numbers `block` is the first in the stream.
template <Isa I, class S>
class StochasticStore {
 public:
  static constexpr std::int64_t kTile = 64;

  alignas(64) float values[kTile] = {};

  DRUPE_INLINE StochasticStore(const Rounding& rounding, std::uint64_t block)
      : philox_{rounding.seed, rounding.offset}, block_(block) {}

  // How many elements from a place on go at once.
  DRUPE_INLINE std::int64_t room(std::int64_t place) const { return kTile - place % 4; }

  // Rounds the first `size` of values, whose places begin at `place`.
  DRUPE_INLINE void store(std::int64_t place, std::int64_t size, S* to) {
    alignas(64) float uniforms[kTile + 4];
    std::fill_n(uniforms + kTile, 4, 0.0f);
    philox_(block_ + static_cast<std::uint64_t>(place / 4), uniforms);
    const float* u = uniforms + place % 4;
    S rounded[kTile];
    for (std::int64_t k = 0; k < kTile; ++k) {
      const auto random24 = static_cast<std::uint32_t>(static_cast<std::int32_t>(u[k] * 0x1p24f));
      rounded[k] = round_stochastically<S>(values[k], random24);
    }
    std::memcpy(to, rounded, static_cast<std::size_t>(size) * sizeof(S));
  }

 private:
  Philox<I, static_cast<int>(kTile / 4 / Words<I>::kLanes)> philox_;
  std::uint64_t block_;
};

}  // namespace drupe::cpu
