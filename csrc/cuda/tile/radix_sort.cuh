// A stable radix sort, least significant digit first, eight bits a pass. A block has a tile of consecutive entries, a
// warp a run of them. Each pass counts digits by tile, turns the counts into places, and scatters: entries are ranked
// among the equal digits of their warp by ballots, brought into order in shared memory, and leave it in runs. Nothing
// depends on who comes first. Bytes: the entries read twice and written once a pass.
#pragma once

#include <cstdint>
#include <platform/launch.cuh>
#include <utility>

#include "cuda/tile/scan.cuh"

namespace drupe::cuda {

// A key and what it carries, in one word for both below 2^32.
struct PackedEntry {
  std::uint64_t word;
  static __device__ __forceinline__ PackedEntry make(std::int64_t key, std::int64_t payload) {
    return {static_cast<std::uint64_t>(key) << 32 | static_cast<std::uint64_t>(payload)};
  }
  __device__ __forceinline__ std::int64_t key() const { return static_cast<std::int64_t>(word >> 32); }
  __device__ __forceinline__ std::int64_t payload() const { return static_cast<std::int64_t>(word & 0xffffffffu); }
};

struct alignas(16) WideEntry {
  std::int64_t key_, payload_;
  static __device__ __forceinline__ WideEntry make(std::int64_t key, std::int64_t payload) { return {key, payload}; }
  __device__ __forceinline__ std::int64_t key() const { return key_; }
  __device__ __forceinline__ std::int64_t payload() const { return payload_; }
};

inline constexpr int kSortThreads = 256;
inline constexpr int kSortWarps = kSortThreads / kWarp;
inline constexpr int kDigitBits = 8;
inline constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == kSortThreads, "a thread has a digit");

// 32 KiB of entries a tile.
template <class Entry>
inline constexpr int kSortItems = 128 / static_cast<int>(sizeof(Entry));
template <class Entry>
inline constexpr int kSortTile = kSortItems<Entry> * kSortThreads;

template <class Entry>
struct SortPass {
  const Entry* from;
  Entry* to;
  std::int64_t size;
  int shift, bits;             // of this pass' digit
  std::int64_t* places;        // (digits, tiles): counts, then the place of each within its digit
  std::int64_t* digit_totals;  // (digits,)

  __device__ __forceinline__ int digit(const Entry& entry) const {
    return static_cast<int>(entry.key() >> shift) & ((1 << bits) - 1);
  }
};

struct HistogramStorage {
  int count[kDigits];
};

template <class Entry>
__global__ __launch_bounds__(kSortThreads) void radix_histogram_kernel(SortPass<Entry> pass) {
  auto& storage = shared_storage<HistogramStorage>();
  storage.count[threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * kSortTile<Entry> + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kSortItems<Entry>; ++k) {
    const std::int64_t e = base + k * kSortThreads;
    if (e < pass.size) atomicAdd(&storage.count[pass.digit(pass.from[e])], 1);
  }
  __syncthreads();
  pass.places[static_cast<std::int64_t>(threadIdx.x) * gridDim.x + blockIdx.x] = storage.count[threadIdx.x];
}

template <class Entry>
struct ScatterStorage {
  Entry entries[kSortTile<Entry>];
  int before[kSortWarps][kDigits];  // entries of that digit in the warps before; at last, their place in the tile
  std::int64_t shift_of[kDigits];   // from a place in the tile to one in the result
  ScanStorage<std::int64_t, kSortThreads> scan;
  ScanStorage<int, kSortThreads> tile_scan;
};

// How many entries of this digit came before in the warp, this round's lower lanes included; counts them.
__device__ __forceinline__ int rank_in_warp(int digit, bool valid, int bits, int* before) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  unsigned peers = __ballot_sync(kFullMask, valid);
  for (int bit = 0; bit < bits; ++bit) {
    const bool set = (digit >> bit & 1) != 0;
    const unsigned ones = __ballot_sync(kFullMask, set);
    peers &= set ? ones : ~ones;
  }
  const int rank = __popc(peers & ((1u << lane) - 1));
  const int earlier = valid ? before[digit] : 0;
  __syncwarp();
  if (valid && rank == 0) before[digit] = earlier + __popc(peers);
  __syncwarp();
  return earlier + rank;
}

// Turns each warp's counts into places in the tile. Thread d has digit d.
template <class Entry>
__device__ __forceinline__ void place_digits(const SortPass<Entry>& pass, ScatterStorage<Entry>& storage) {
  const int digit = static_cast<int>(threadIdx.x);
  int count = 0;
#pragma unroll
  for (int warp = 0; warp < kSortWarps; ++warp) {
    const int here = storage.before[warp][digit];
    storage.before[warp][digit] = count;
    count += here;
  }
  int all;
  const int start = block_scan<kSortThreads>(count, all, storage.tile_scan);
#pragma unroll
  for (int warp = 0; warp < kSortWarps; ++warp) storage.before[warp][digit] += start;
  std::int64_t everything;
  const std::int64_t total = digit < 1 << pass.bits ? pass.digit_totals[digit] : 0;
  const std::int64_t base = block_scan<kSortThreads>(total, everything, storage.scan);
  if (count > 0) {
    storage.shift_of[digit] = base + pass.places[static_cast<std::int64_t>(digit) * gridDim.x + blockIdx.x] - start;
  }
  __syncthreads();
}

template <class Entry>
__global__ __launch_bounds__(kSortThreads) void radix_scatter_kernel(SortPass<Entry> pass) {
  constexpr int kItems = kSortItems<Entry>;
  auto& storage = shared_storage<ScatterStorage<Entry>>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int k = 0; k < kSortWarps; ++k) storage.before[k][threadIdx.x] = 0;
  __syncthreads();

  const std::int64_t tile = static_cast<std::int64_t>(blockIdx.x) * kSortTile<Entry>;
  const std::int64_t first = tile + warp * kItems * kWarp + lane;
  Entry entry[kItems];
  int rank[kItems];
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (first + k * kWarp < pass.size) entry[k] = pass.from[first + k * kWarp];
  }
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const bool valid = first + k * kWarp < pass.size;
    rank[k] = rank_in_warp(valid ? pass.digit(entry[k]) : 0, valid, pass.bits, storage.before[warp]);
  }
  __syncthreads();
  place_digits(pass, storage);

#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (first + k * kWarp < pass.size) storage.entries[storage.before[warp][pass.digit(entry[k])] + rank[k]] = entry[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int at = k * kSortThreads + static_cast<int>(threadIdx.x);
    if (tile + at >= pass.size) continue;
    const Entry sorted = storage.entries[at];
    pass.to[storage.shift_of[pass.digit(sorted)] + at] = sorted;
  }
}

// Sorts by key, all keys below 2^bits, between two buffers; gives the one with the result.
template <class Entry>
Entry* radix_sort(Stream stream, Entry* entries, Entry* spare, std::int64_t size, int bits) {
  if (size == 0) return entries;
  const int passes = (bits + kDigitBits - 1) / kDigitBits;
  const int width = passes ? (bits + passes - 1) / passes : 0;
  const std::int64_t tiles = (size + kSortTile<Entry> - 1) / kSortTile<Entry>;
  const auto places = scratch<std::int64_t>(stream, kDigits * (tiles + 1));
  for (int pass = 0; pass < passes; ++pass) {
    const SortPass<Entry> arguments{.from = entries,
                                    .to = spare,
                                    .size = size,
                                    .shift = pass * width,
                                    .bits = width,
                                    .places = places.get(),
                                    .digit_totals = places.get() + kDigits * tiles};
    const LaunchConfig config{
        .grid = {static_cast<unsigned>(tiles)}, .block = {kSortThreads}, .shared_bytes = sizeof(HistogramStorage)};
    launch<radix_histogram_kernel<Entry>>(config, stream, arguments);
    scan_rows(stream, places.get(), std::int64_t{1} << width, tiles, arguments.digit_totals);
    launch<radix_scatter_kernel<Entry>>(
        {.grid = config.grid, .block = config.block, .shared_bytes = sizeof(ScatterStorage<Entry>)}, stream, arguments);
    std::swap(entries, spare);
  }
  return entries;
}

}  // namespace drupe::cuda
