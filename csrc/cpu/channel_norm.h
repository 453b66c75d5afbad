// The sweeps that batch_norm and group_norm share, over samples x rows x C with contiguous channels.
//
// A task owns a block of a sample's rows and a chunk of channels, up to 16384 elements; four vectors of channels (with
// 32 registers eight: longer pieces of a row are fetched sooner) go down the block's rows with their sums in registers.
// Each block's sums are combined in double precision, in block order. Statistics sweep a block twice in cache: its
// mean, then the moments about it, so that a large mean does not cancel.
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/lanes.h"

namespace drupe::cpu {

struct ChannelBlocks {
  static constexpr std::int64_t kChunkChannels = 256;
  static constexpr std::int64_t kBlockElements = 16384;
  static constexpr std::int64_t kBlockRows = 512;  // at most: a lane adds up one term per row

  std::int64_t samples, rows, C;
  std::int64_t block_rows =
      std::min(kBlockRows, kBlockElements / std::max<std::int64_t>(1, std::min(C, kChunkChannels)));
  std::int64_t blocks = (rows + block_rows - 1) / block_rows;  // of each sample

  DRUPE_INLINE std::int64_t block_size(std::int64_t block) const {
    return std::min(block_rows, rows - block * block_rows);
  }
};

// Part of one sample's rows, from channel `c` on.
struct ChannelTask {
  std::int64_t sample, block, c, channels;
  std::int64_t rows;
  std::int64_t offset;   // of its first element
  std::int64_t partial;  // index of the block among all samples' blocks
};

template <Isa I, class Body>
void for_channel_tasks(const ChannelBlocks& b, const Body& body) {
  const std::int64_t chunks = (b.C + ChannelBlocks::kChunkChannels - 1) / ChannelBlocks::kChunkChannels;
  parallel_for(b.samples * b.blocks * chunks, [&](std::int64_t index) {
    const std::int64_t c = index % chunks * ChannelBlocks::kChunkChannels;
    const std::int64_t partial = index / chunks;
    const std::int64_t sample = partial / b.blocks;
    const std::int64_t block = partial % b.blocks;
    body(ChannelTask{.sample = sample,
                     .block = block,
                     .c = c,
                     .channels = std::min(ChannelBlocks::kChunkChannels, b.C - c),
                     .rows = b.block_size(block),
                     .offset = (sample * b.rows + block * b.block_rows) * b.C + c,
                     .partial = partial});
  });
}

// body.operator()<kVectors>(j, lanes) for runs of eight or four vectors of [0, channels), then single ones.
template <Isa I, class T, class Body>
DRUPE_INLINE void for_channel_groups(std::int64_t channels, const Body& body) {
  constexpr std::int64_t kLanes = Vec<T, I>::kLanes;
  std::int64_t j = 0;
  if constexpr (kRegisters<I> == 32) {
    for (; j + 8 * kLanes <= channels; j += 8 * kLanes) body.template operator()<8>(j, AllLanes{});
  }
  for (; j + 4 * kLanes <= channels; j += 4 * kLanes) body.template operator()<4>(j, AllLanes{});
  for (; j + kLanes <= channels; j += kLanes) body.template operator()<1>(j, AllLanes{});
  if (j < channels) body.template operator()<1>(j, FirstLanes{static_cast<int>(channels - j)});
}

// Per block and channel: its mean m, rounded, and the sums of (x - m) and (x - m)^2. partial is (blocks, 3, C).
template <Isa I, class S>
void channel_statistics(const ChannelBlocks& b, const S* x, Accumulator<S>* partial) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  for_channel_tasks<I>(b, [&](const ChannelTask& task) {
    T* out = partial + task.partial * 3 * b.C + task.c;
    const V count = V::set(static_cast<T>(task.rows));
    for_channel_groups<I, T>(task.channels, [&]<int kVectors>(std::int64_t j, auto lanes) {
      const S* source = x + task.offset + j;
      V mean[kVectors], first[kVectors], second[kVectors];
      for (int k = 0; k < kVectors; ++k) mean[k] = first[k] = second[k] = V::zero();
      for (std::int64_t row = 0; row < task.rows; ++row) {
#pragma GCC unroll 8
        for (int k = 0; k < kVectors; ++k) {
          mean[k] = mean[k] + load<V>(source + row * b.C + k * V::kLanes, lanes);
        }
      }
      for (int k = 0; k < kVectors; ++k) mean[k] = mean[k] / count;
      for (std::int64_t row = 0; row < task.rows; ++row) {
#pragma GCC unroll 8
        for (int k = 0; k < kVectors; ++k) {
          const V d = load<V>(source + row * b.C + k * V::kLanes, lanes) - mean[k];
          first[k] = first[k] + d;
          second[k] = fma(d, d, second[k]);
        }
      }
      for (int k = 0; k < kVectors; ++k) {
        store(mean[k], out + j + k * V::kLanes, lanes);
        store(first[k], out + b.C + j + k * V::kLanes, lanes);
        store(second[k], out + 2 * b.C + j + k * V::kLanes, lanes);
      }
    });
  });
}

// y = (x - center) scale + shift; the coefficients are (samples, 3, C), center first.
template <Isa I, class S>
void channel_affine(const ChannelBlocks& b, const S* x, const Accumulator<S>* coefficients, S* y) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  for_channel_tasks<I>(b, [&](const ChannelTask& task) {
    const T* table = coefficients + task.sample * 3 * b.C + task.c;
    for_channel_groups<I, T>(task.channels, [&]<int kVectors>(std::int64_t j, auto lanes) {
      V center[kVectors], scale[kVectors], shift[kVectors];
      for (int k = 0; k < kVectors; ++k) {
        center[k] = load<V>(table + j + k * V::kLanes, lanes);
        scale[k] = load<V>(table + b.C + j + k * V::kLanes, lanes);
        shift[k] = load<V>(table + 2 * b.C + j + k * V::kLanes, lanes);
      }
      for (std::int64_t row = 0; row < task.rows; ++row) {
        const std::int64_t at = task.offset + row * b.C + j;
#pragma GCC unroll 8
        for (int k = 0; k < kVectors; ++k) {
          const V value = load<V>(x + at + k * V::kLanes, lanes);
          store(fma(value - center[k], scale[k], shift[k]), y + at + k * V::kLanes, lanes);
        }
      }
    });
  });
}

// Per block and channel: the sums of dy and dy (x - center), center being (samples, C). partial is (blocks, 2, C).
template <Isa I, class S>
void channel_gradient_sums(const ChannelBlocks& b, const S* x, const S* dy, const Accumulator<S>* center,
                           Accumulator<S>* partial) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  for_channel_tasks<I>(b, [&](const ChannelTask& task) {
    T* out = partial + task.partial * 2 * b.C + task.c;
    for_channel_groups<I, T>(task.channels, [&]<int kVectors>(std::int64_t j, auto lanes) {
      V mean[kVectors], plain[kVectors], weighted[kVectors];
      for (int k = 0; k < kVectors; ++k) {
        mean[k] = load<V>(center + task.sample * b.C + task.c + j + k * V::kLanes, lanes);
        plain[k] = weighted[k] = V::zero();
      }
      for (std::int64_t row = 0; row < task.rows; ++row) {
        const std::int64_t at = task.offset + row * b.C + j;
#pragma GCC unroll 8
        for (int k = 0; k < kVectors; ++k) {
          const V d = load<V>(dy + at + k * V::kLanes, lanes);
          plain[k] = plain[k] + d;
          weighted[k] = fma(d, load<V>(x + at + k * V::kLanes, lanes) - mean[k], weighted[k]);
        }
      }
      for (int k = 0; k < kVectors; ++k) {
        store(plain[k], out + j + k * V::kLanes, lanes);
        store(weighted[k], out + b.C + j + k * V::kLanes, lanes);
      }
    });
  });
}

// dx = dy scale + (x - center) slope + shift; the coefficients are (samples, 4, C): center, scale, slope, shift.
template <Isa I, class S>
void channel_gradient(const ChannelBlocks& b, const S* x, const S* dy, const Accumulator<S>* coefficients, S* dx) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  for_channel_tasks<I>(b, [&](const ChannelTask& task) {
    const T* table = coefficients + task.sample * 4 * b.C + task.c;
    for_channel_groups<I, T>(task.channels, [&]<int kVectors>(std::int64_t j, auto lanes) {
      V center[kVectors], scale[kVectors], slope[kVectors], shift[kVectors];
      for (int k = 0; k < kVectors; ++k) {
        center[k] = load<V>(table + j + k * V::kLanes, lanes);
        scale[k] = load<V>(table + b.C + j + k * V::kLanes, lanes);
        slope[k] = load<V>(table + 2 * b.C + j + k * V::kLanes, lanes);
        shift[k] = load<V>(table + 3 * b.C + j + k * V::kLanes, lanes);
      }
      for (std::int64_t row = 0; row < task.rows; ++row) {
        const std::int64_t at = task.offset + row * b.C + j;
#pragma GCC unroll 8
        for (int k = 0; k < kVectors; ++k) {
          const V d = load<V>(dy + at + k * V::kLanes, lanes);
          const V rest = fma(load<V>(x + at + k * V::kLanes, lanes) - center[k], slope[k], shift[k]);
          store(fma(d, scale[k], rest), dx + at + k * V::kLanes, lanes);
        }
      }
    });
  });
}

}  // namespace drupe::cpu
