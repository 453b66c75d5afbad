// Many tensors in one launch: a table of them among the kernel's arguments, cut into chunks of fixed size, one a block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <platform/device.cuh>

#include "cuda/tile/map.cuh"

namespace drupe::cuda {

inline constexpr int kTableBytes = 3840;  // of the 4096 that every kernel's arguments may take

// A tensor's part of a launch. Its chunk c has elements [head + c * chunk, head + (c + 1) * chunk), and chunk 0 those
// before as well.
struct ChunkSpan {
  std::int64_t size;
  int head;
  unsigned first_chunk;

  std::int64_t chunks(std::int64_t chunk) const {
    const std::int64_t body = size - std::max(head, 0);
    return std::max<std::int64_t>(1, (body + chunk - 1) / chunk);
  }
};

template <class Slot>
inline constexpr int kTableSlots = kTableBytes / static_cast<int>(sizeof(Slot));

template <class Slot>
struct ChunkTable {
  Slot slots[kTableSlots<Slot>];
  int count = 0;
  unsigned chunks = 0;

  bool is_full() const { return count == kTableSlots<Slot> || chunks > 0x40000000u; }
  void add(const Slot& slot, std::int64_t chunk) {
    slots[count] = slot;
    slots[count++].span.first_chunk = chunks;
    chunks += static_cast<unsigned>(slot.span.chunks(chunk));
  }

  // The slot that a chunk belongs to.
  __device__ __forceinline__ int find(unsigned chunk) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (slots[middle].span.first_chunk <= chunk ? low : high) = middle;
    }
    return low;
  }
};

// Calls packs(i) where kPack elements from i on are this thread's, and single(i) for single elements.
template <int kPack, class Packs, class Single>
__device__ __forceinline__ void walk_chunk(const ChunkSpan& span, std::int64_t index, std::int64_t chunk,
                                           const Packs& packs, const Single& single) {
  const std::int64_t from = (span.head > 0 ? span.head : 0) + index * chunk;
  const std::int64_t to = from + chunk < span.size ? from + chunk : span.size;
  const auto thread = static_cast<std::int64_t>(threadIdx.x);
  if (span.head < 0) {
    for (std::int64_t i = from + thread; i < to; i += kMapThreads) single(i);
    return;
  }
  if (index == 0 && thread < span.head && thread < span.size) single(thread);
  if (from >= to) return;
  for (std::int64_t i = from + thread * kPack; i + kPack <= to; i += kMapThreads * kPack) packs(i);
  const std::int64_t rest = from + (to - from) / kPack * kPack + thread;
  if (rest < to) single(rest);
}

}  // namespace drupe::cuda
