// How gemm is cut into blocks: a pure function of the problem and the device.
#pragma once

#include <algorithm>
#include <cstdint>

namespace drupe::cuda {

inline constexpr int kLargeBlock = 128, kSmallBlock = 64;

// Blocks of threads compute `block` x `block` of y. Those of the last wave, which would leave multiprocessors idle, may
// be cut along K: `splits` blocks for each, whose sums a second kernel adds in the order of k.
struct GemmSchedule {
  int block;
  std::int64_t whole;   // tiles that one block sums to the end; the others come after them
  std::int64_t splits;  // parts of K of each of the others; 1 where there are none
};

constexpr std::int64_t tiles_across(std::int64_t extent, std::int64_t block) {
  return (extent + block - 1) / block;
}

// The time of `parts` waves of a tile's K cut into `splits`, in steps of k: sums that come in parts cost as much as
// some more of k to bring to memory, and the second kernel to start.
constexpr std::int64_t split_time(std::int64_t K, std::int64_t splits, std::int64_t waves) {
  constexpr std::int64_t kWriteSums = 64, kSecondKernel = 256;
  return splits == 1 ? waves * K : waves * (tiles_across(K, splits) + kWriteSums) + kSecondKernel;
}

// What takes least by this model: full waves of whole tiles, then the last one whole or in parts. A small block moves
// more bytes for each product, 1.3 times the time; two of them keep a multiprocessor as busy as a large one.
constexpr GemmSchedule schedule_gemm(std::int64_t M, std::int64_t N, std::int64_t K, std::int64_t batch,
                                     std::int64_t multiprocessors, int largest = kLargeBlock) {
  constexpr std::int64_t kShortestPart = 256, kMostParts = 32;
  GemmSchedule best{};
  std::int64_t least = -1;
  for (int block = largest; block >= kSmallBlock; block /= 2) {
    const std::int64_t workers = block == kSmallBlock ? 2 * multiprocessors : multiprocessors;
    const std::int64_t cost = block == kSmallBlock ? 2 * 13 : 4 * 10;  // of a step of k in every worker
    const std::int64_t tiles = tiles_across(M, block) * tiles_across(N, block) * batch;
    const std::int64_t rest = tiles % workers, depth = std::max<std::int64_t>(K, 1);
    const std::int64_t most = rest == 0 ? 1 : std::clamp<std::int64_t>(depth / kShortestPart, 1, kMostParts);
    for (std::int64_t splits = 1; splits <= most; ++splits) {
      const std::int64_t last = split_time(depth, splits, tiles_across(rest * splits, workers));
      const std::int64_t time = cost * (tiles / workers * depth + last);
      if (least >= 0 && time >= least) continue;
      least = time;
      best = {.block = block, .whole = splits == 1 ? tiles : tiles - rest, .splits = splits};
    }
  }
  return best;
}

inline constexpr int kFewRows = 16;

// Columns of a block where the product is bound by b's bytes and has a kernel of its own; 0 where it is not. Twice as
// many columns read a half as often; few blocks need all of them to fill the device.
constexpr int few_rows_columns(std::int64_t M, std::int64_t N, std::int64_t K, std::int64_t batch,
                               std::int64_t multiprocessors) {
  constexpr std::int64_t kShortestK = 128;
  if (M > kFewRows || K < kShortestK || tiles_across(N, 8) * batch > 0x7fffffff) return 0;
  return M <= 4 && tiles_across(N, 16) * batch < 2 * multiprocessors ? 8 : 16;
}

}  // namespace drupe::cuda
