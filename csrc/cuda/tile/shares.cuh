// How rows and columns are shared out to threads: pure functions of the sizes, so that results are the same on every
// device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {

inline constexpr std::int64_t kManyBlocks = 1024;  // enough for any device; more are made out of few results

// The smallest power of two that is not less.
constexpr std::int64_t round_up_to_power_of_two(std::int64_t value) {
  std::int64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

// Lanes for a row of `items` at `per_lane` each: up to a warp.
constexpr int lanes_for(std::int64_t items, std::int64_t per_lane) {
  const std::int64_t wanted = (items + per_lane - 1) / per_lane;
  return wanted >= kWarp ? kWarp : static_cast<int>(round_up_to_power_of_two(wanted));
}

// Threads for a row of some 16-byte blocks that is read once: of a warp while each has a few, else all of a block's.
constexpr int choose_row_lanes(std::int64_t blocks, int threads) {
  return blocks > 8 * kWarp ? threads : lanes_for(blocks, 1);
}

// The same for a row that is kept in registers, `few` or `many` elements a thread; kept is 0 where it does not fit.
struct RowShare {
  int lanes, kept;
};
constexpr RowShare choose_row_share(std::int64_t items, int few, int many, int threads) {
  const int lanes = items <= few * kWarp ? lanes_for(items, few) : items <= many * kWarp ? kWarp : threads;
  return {lanes, items <= few * lanes ? few : items <= many * lanes ? many : 0};
}

// Parts of `rows` rows that the threads of a block take, the rest of them lying side by side along `packs` columns:
// half a kilobyte of them; beyond that threads rather share the rows.
constexpr int choose_column_parts(std::int64_t packs, std::int64_t rows, int threads) {
  const std::int64_t narrowest = std::min<std::int64_t>(round_up_to_power_of_two(packs), kWarp);
  int parts = 1;
  while (parts * 2 <= threads / narrowest && parts * 8 <= rows) parts *= 2;
  return parts;
}

// The length of a piece where `count` things of `size` are cut into many blocks: at least and, before that, at most so
// much.
constexpr std::int64_t choose_length(std::int64_t size, std::int64_t count, std::int64_t least, std::int64_t most) {
  const std::int64_t fair = (size * count + kManyBlocks - 1) / kManyBlocks;
  return std::max(least, std::min(fair, most));
}

}  // namespace drupe::cuda
