// How conv2d is cut into blocks: pure functions of the problem and the device.
#pragma once

#include <algorithm>
#include <cstdint>

namespace drupe::cuda::conv {

inline constexpr int kLargeBlock = 128, kSmallBlock = 64;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// How a sum over `size` things is cut where one stretch takes `blocks` blocks: by the sizes alone, so that the result
// is the same everywhere.
struct Stretches {
  std::int64_t size, count;
};
constexpr Stretches choose_stretches(std::int64_t size, std::int64_t wanted_blocks, std::int64_t blocks,
                                     std::int64_t slice, std::int64_t least_slices) {
  constexpr std::int64_t kLongest = std::int64_t{1} << 30;
  const std::int64_t most = std::max<std::int64_t>(1, size / (slice * least_slices));
  const std::int64_t wanted = std::max(ceil_div(wanted_blocks, blocks), ceil_div(size, kLongest));
  const std::int64_t count = std::clamp<std::int64_t>(wanted, 1, most);
  const std::int64_t stretch = std::max<std::int64_t>(1, ceil_div(ceil_div(size, count), slice)) * slice;
  return {stretch, std::max<std::int64_t>(1, ceil_div(size, stretch))};
}

// Rows and columns of a block, for `count` products of that size in one launch: the large one where columns would not
// be wasted on it and it keeps every multiprocessor busy.
constexpr int choose_block(std::int64_t rows, std::int64_t cols, std::int64_t groups, std::int64_t count,
                           std::int64_t multiprocessors) {
  const std::int64_t blocks = count * ceil_div(rows, kLargeBlock) * ceil_div(cols, kLargeBlock) * groups;
  return cols > kSmallBlock && blocks >= multiprocessors ? kLargeBlock : kSmallBlock;
}

}  // namespace drupe::cuda::conv
