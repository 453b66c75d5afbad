// Sorted entries cut into segments of one key each. A block has a tile of entries, a warp a run of them, of which it
// finds the heads by ballots. Bytes: the entries twice, the segments once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <platform/launch.cuh>

#include "core/cuda.h"
#include "cuda/tile/scan.cuh"

namespace drupe::cuda {

inline constexpr int kHeadThreads = 256;
inline constexpr int kHeadRounds = 8;
inline constexpr int kHeadWarps = kHeadThreads / kWarp;
inline constexpr int kHeadTile = kHeadThreads * kHeadRounds;

struct HeadStorage {
  int count[kHeadWarps];
};

struct SegmentTotals {
  std::int64_t segments, entries;  // without the skipped
};

template <class Entry>
struct Sorted {
  const Entry* entries;
  std::int64_t size, limit;  // rows at the limit are skipped

  // Whether a segment begins here.
  __device__ __forceinline__ bool head(std::int64_t e) const {
    const std::int64_t row = entries[e].key();
    return row < limit && (e == 0 || entries[e - 1].key() != row);
  }
  __device__ __forceinline__ bool last(std::int64_t e) const {
    return entries[e].key() < limit && (e + 1 == size || entries[e + 1].key() == limit);
  }
};

// The heads among a warp's share of the tile, a mask a round; gives their number.
template <class Entry>
__device__ __forceinline__ int find_heads(const Sorted<Entry>& sorted, std::int64_t first,
                                          unsigned (&heads)[kHeadRounds]) {
  int count = 0;
#pragma unroll
  for (int k = 0; k < kHeadRounds; ++k) {
    const std::int64_t e = first + k * kWarp;
    heads[k] = __ballot_sync(kFullMask, e < sorted.size && sorted.head(e));
    count += __popc(heads[k]);
  }
  return count;
}

__device__ __forceinline__ std::int64_t first_of_lane() {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  return static_cast<std::int64_t>(blockIdx.x) * kHeadTile + warp * kHeadRounds * kWarp + lane;
}

template <class Entry>
__global__ __launch_bounds__(kHeadThreads) void count_segments_kernel(Sorted<Entry> sorted, std::int64_t* tile_counts,
                                                                      SegmentTotals* totals) {
  auto& storage = shared_storage<HeadStorage>();
  unsigned heads[kHeadRounds];
  const std::int64_t first = first_of_lane();
  const int count = find_heads(sorted, first, heads);
  for (int k = 0; k < kHeadRounds; ++k) {
    const std::int64_t e = first + k * kWarp;
    if (e < sorted.size && sorted.last(e)) totals->entries = e + 1;
  }
  if (threadIdx.x % kWarp == 0) storage.count[threadIdx.x / kWarp] = count;
  __syncthreads();
  if (threadIdx.x > 0) return;
  int total = 0;
  for (int warp = 0; warp < kHeadWarps; ++warp) total += storage.count[warp];
  tile_counts[blockIdx.x] = total;
}

// The logarithm of the entries a task, `fewest` or more, given their number and the bytes of a row, of which a lane
// takes 16.
constexpr int choose_log_task(std::int64_t entries, std::int64_t row_bytes, int fewest) {
  constexpr std::int64_t kThreads = std::int64_t{1} << 18;  // about what a device holds
  const std::int64_t lanes = std::max<std::int64_t>(1, row_bytes / 16);
  int log_task = fewest;
  while ((entries >> (log_task + 1)) * lanes >= kThreads) ++log_task;
  return log_task;
}

// Where segments lie, and which of them the tasks begin in.
struct Segments {
  std::int64_t* begins;   // (segments + 1,) entries
  std::int64_t* rows;     // (segments,)
  std::int64_t* of_task;  // (tasks,)
  int log_task;           // of the entries a task
};

template <class Entry>
__global__ __launch_bounds__(kHeadThreads) void write_segments_kernel(Sorted<Entry> sorted, const SegmentTotals* found,
                                                                      const std::int64_t* tiles_before,
                                                                      Segments segments) {
  const SegmentTotals totals = *found;
  auto& storage = shared_storage<HeadStorage>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  unsigned heads[kHeadRounds];
  const std::int64_t first = first_of_lane();
  const int count = find_heads(sorted, first, heads);
  if (lane == 0) storage.count[warp] = count;
  __syncthreads();
  std::int64_t before = tiles_before[blockIdx.x];
  for (int k = 0; k < warp; ++k) before += storage.count[k];
#pragma unroll
  for (int k = 0; k < kHeadRounds; ++k) {
    const std::int64_t e = first + k * kWarp;
    const unsigned upto = heads[k] & (0xffffffffu >> (kWarp - 1 - lane));
    const std::int64_t segment = before + __popc(upto) - 1;
    if (heads[k] >> lane & 1) {
      segments.begins[segment] = e;
      segments.rows[segment] = sorted.entries[e].key();
    }
    if (e < totals.entries && (e >> segments.log_task) << segments.log_task == e) {
      segments.of_task[e >> segments.log_task] = segment;
    }
    if (e == 0) segments.begins[totals.segments] = totals.entries;
    before += __popc(heads[k]);
  }
}

inline std::int64_t head_tiles(std::int64_t size) {
  return (size + kHeadTile - 1) / kHeadTile;
}

template <class Entry>
LaunchConfig head_config(const Sorted<Entry>& sorted) {
  return {.grid = {static_cast<unsigned>(head_tiles(sorted.size))},
          .block = {kHeadThreads},
          .shared_bytes = sizeof(HeadStorage)};
}

// Fills `before` with the segments that begin before each tile. Gives the totals, on the device.
template <class Entry>
std::shared_ptr<SegmentTotals> count_segments(Stream stream, const Sorted<Entry>& sorted, std::int64_t* before) {
  const auto totals = scratch<SegmentTotals>(stream, 1);
  zero_bytes(totals.get(), sizeof(SegmentTotals), {DeviceType::cuda, stream.device});
  launch<count_segments_kernel<Entry>>(head_config(sorted), stream, sorted, before, totals.get());
  scan_rows(stream, before, 1, head_tiles(sorted.size), &totals->segments);
  return totals;
}

template <class Entry>
void write_segments(Stream stream, const Sorted<Entry>& sorted, const SegmentTotals* totals, const std::int64_t* before,
                    const Segments& segments) {
  launch<write_segments_kernel<Entry>>(head_config(sorted), stream, sorted, totals, before, segments);
}

}  // namespace drupe::cuda
