// How gemm is cut into blocks: a pure function of the problem and the device.
#pragma once

#include <algorithm>
#include <cstdint>

namespace drupe::cuda {

inline constexpr int kLargeBlock = 128, kSmallBlock = 64;

struct GemmTile {
  int block;            // rows and columns of y that a block of threads computes
  std::int64_t splits;  // parts of K, summed by a second kernel where there are several
};

constexpr std::int64_t tiles_across(std::int64_t extent, std::int64_t block) {
  return (extent + block - 1) / block;
}

// The block whose waves over the multiprocessors take less, and for a grid that leaves some of them idle, parts of K.
constexpr GemmTile choose_tile(std::int64_t M, std::int64_t N, std::int64_t K, std::int64_t batch,
                               std::int64_t multiprocessors, int largest = kLargeBlock) {
  constexpr std::int64_t kShortestPart = 256, kMostParts = 32;
  const auto tiles = [&](int block) { return tiles_across(M, block) * tiles_across(N, block) * batch; };
  // A smaller block moves more bytes for each product: 1.3 times the time, where both fill the device.
  const auto time = [&](int block) {
    const std::int64_t waves = (tiles(block) + multiprocessors - 1) / multiprocessors;
    return waves * block * block * (block == kSmallBlock ? 13 : 10);
  };
  GemmTile tile{.block = largest, .splits = 1};
  if (largest > kSmallBlock && time(kSmallBlock) < time(kLargeBlock)) tile.block = kSmallBlock;
  const std::int64_t count = tiles(tile.block);
  if (count < multiprocessors) {
    tile.splits = std::max<std::int64_t>(1, std::min({2 * multiprocessors / count, K / kShortestPart, kMostParts}));
  }
  return tile;
}

}  // namespace drupe::cuda
