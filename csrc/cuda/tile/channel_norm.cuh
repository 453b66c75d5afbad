// The sweeps that batch_norm and group_norm share, over samples x rows x C with contiguous channels.
//
// A block of 256 threads owns a chunk of one sample's rows and up to kTx packs of channels (16 bytes where C and the
// pointers allow, else one channel); a thread keeps its pack and goes down every kTy-th row, four rows in flight. Sums
// are in the accumulator's type, for at most 512 rows a thread, then merged over the block as a tree and written in
// double, one partial a chunk and channel, which a second kernel adds up in a fixed order. Bytes: each operand once,
// and 16 bytes a chunk and channel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <platform/launch.cuh>

#include "cuda/tile/vec.cuh"

namespace drupe::cuda {

inline constexpr int kChannelThreads = 256;
inline constexpr int kRowsInFlight = 4;

// How the blocks share out samples x rows x C.
struct ChannelTiling {
  std::int64_t samples, rows, C;
  int across;               // threads along the channels; the others lie along the rows
  std::int64_t columns;     // blocks along the channels
  std::int64_t chunk_rows;  // rows of a block
  std::int64_t chunks;      // of a sample
};

// Enough blocks to fill a device, where each thread still has several rows. Independent of the device, so that sums are
// the same on all.
inline ChannelTiling choose_channel_tiling(std::int64_t samples, std::int64_t rows, std::int64_t C, int pack) {
  constexpr std::int64_t kBlocks = 1024, kLeastRows = 4 * kRowsInFlight, kMostRows = 512;
  const std::int64_t packs = C / pack;
  int across = 1;
  while (across < packs && (across < 32 || (across < kChannelThreads && kChannelThreads / across > rows))) across *= 2;
  const std::int64_t down = kChannelThreads / across;
  const std::int64_t columns = (packs + across - 1) / across;
  const std::int64_t wanted = (rows * samples * columns + kBlocks - 1) / kBlocks;
  const std::int64_t step = down * kRowsInFlight;
  const std::int64_t chunk_rows = std::clamp((wanted + step - 1) / step * step, down * kLeastRows, down * kMostRows);
  return {.samples = samples,
          .rows = rows,
          .C = C,
          .across = across,
          .columns = columns,
          .chunk_rows = chunk_rows,
          .chunks = (rows + chunk_rows - 1) / chunk_rows};
}

// A thread's share: `rows` rows from `offset` on, `step` elements apart.
struct ChannelShare {
  std::int64_t sample, partial, channel, offset, step;
  int rows, lane, across;  // lane: the thread's place along the rows; rows: 0 for a thread beyond the channels
  bool active;
};

template <int kPack>
__device__ __forceinline__ ChannelShare channel_share(const ChannelTiling& tiling) {
  const int across = tiling.across, down = kChannelThreads / across;
  const int thread = static_cast<int>(threadIdx.x), lane = thread / across;
  const std::int64_t partial = blockIdx.x / tiling.columns, column = blockIdx.x - partial * tiling.columns;
  const std::int64_t sample = partial / tiling.chunks, chunk = partial - sample * tiling.chunks;
  const std::int64_t channel = (column * across + thread % across) * kPack;
  const std::int64_t first = chunk * tiling.chunk_rows + lane;
  const std::int64_t past = std::min((chunk + 1) * tiling.chunk_rows, tiling.rows);
  const bool active = channel < tiling.C;
  return {.sample = sample,
          .partial = partial,
          .channel = channel,
          .offset = (sample * tiling.rows + first) * tiling.C + channel,
          .step = down * tiling.C,
          .rows = active && first < past ? static_cast<int>((past - first + down - 1) / down) : 0,
          .lane = lane,
          .across = across,
          .active = active};
}
