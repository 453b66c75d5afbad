// The sweeps that batch_norm and group_norm share, over rows x C with contiguous channels.
//
// A task owns a block of rows and a chunk of channels, up to 16384 elements. A few rows at a time go through it side by
// side, a vector of channels after the other, so that memory is read and written nearly in order. Statistics take each
// channel's mean over a block's first quarter for a number near the mean, then both moments about it in one sweep: as
// much as that quarter is of the block, the square of its distance from the whole mean is at most three times the
// variance, and two bits cancel. Blocks' moments are joined as in Chan, Golub and LeVeque 1979, "Updating formulae and
// a pairwise algorithm for computing sample variances". Worklog: bench/worklog/channel_norm.md.
#pragma once

#include <array>

#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/lanes.h"

namespace drupe::cpu {

// A channel's weight or bias, which may be absent.
template <class T>
double parameter(const void* values, std::int64_t c, double otherwise) {
  return values ? static_cast<double>(static_cast<const T*>(values)[c]) : otherwise;
}

struct ChannelBlocks {
  static constexpr std::int64_t kChunkChannels = 512;
  static constexpr std::int64_t kBlockElements = 16384;
  static constexpr std::int64_t kBlockRows = 512;  // at most: a lane adds up one term per row

  std::int64_t samples;  // of so many rows each that are swept like this, one after the other or side by side
  std::int64_t rows, C;
  std::int64_t block_rows =
      std::min(kBlockRows, kBlockElements / std::max<std::int64_t>(1, std::min(C, kChunkChannels)));
  std::int64_t blocks = (rows + block_rows - 1) / block_rows;

  DRUPE_INLINE std::int64_t block_size(std::int64_t block) const {
    return std::min(block_rows, rows - block * block_rows);
  }
  // Whether the operands come from memory, which the prefetchers follow only where it is read in order: row by row,
  // unless rows are short. Otherwise rows side by side share what their channels have in common.
  template <class S>
  DRUPE_INLINE bool row_by_row() const {
    const std::int64_t row_bytes = C * static_cast<std::int64_t>(sizeof(S));
    return row_bytes >= 512 && samples * rows * row_bytes > caches().l3 / 4;
  }
  // Whether results go past the caches, in whole registers.
  template <class S, Isa I>
  DRUPE_INLINE bool streams() const {
    return passes_caches<S>(samples * rows * C) && C % Vec<Accumulator<S>, I>::kLanes == 0;
  }
};

// A block's rows, from channel `c` on.
struct ChannelTask {
  std::int64_t block, c, channels, rows;
  std::int64_t offset;  // of its first element
};

// What a sweep has read last it finds in cache when the next one begins with it.
enum class Sweep { forward, backward };

template <Isa I, class Body>
void for_channel_tasks(const ChannelBlocks& b, Sweep sweep, const Body& body) {
  const std::int64_t chunks = (b.C + ChannelBlocks::kChunkChannels - 1) / ChannelBlocks::kChunkChannels;
  const std::int64_t tasks = b.blocks * chunks;
  parallel_for(tasks, [&](std::int64_t task) {
    const std::int64_t index = sweep == Sweep::forward ? task : tasks - 1 - task;
    const std::int64_t c = index % chunks * ChannelBlocks::kChunkChannels;
    const std::int64_t block = index / chunks;
    body(ChannelTask{.block = block,
                     .c = c,
                     .channels = std::min(ChannelBlocks::kChunkChannels, b.C - c),
                     .rows = b.block_size(block),
                     .offset = block * b.block_rows * b.C + c});
  });
}

// body(row, count) for rows side by side, as many as the constant `count` says, or row by row.
template <class Body>
DRUPE_INLINE void for_row_tiles(std::int64_t rows, bool row_by_row, const Body& body) {
  constexpr int kRows = 4;
  std::int64_t row = 0;
  if (!row_by_row) {
    for (; row + kRows <= rows; row += kRows) body(row, std::integral_constant<int, kRows>());
  }
  for (; row < rows; ++row) body(row, std::integral_constant<int, 1>());
}

// Asks for what lies kAhead after so many rows, in order, a part with each vector of channels.
template <int kRows, class V, class S>
DRUPE_INLINE void prefetch_rows(const S* rows, std::int64_t j) {
  constexpr std::int64_t kSize = sizeof(S), kLine = 64 / kSize, kAhead = 4096 / kSize;
  for (std::int64_t i = 0; i < kRows * V::kLanes; i += kLine) __builtin_prefetch(rows + kAhead + j * kRows + i);
}

// Per block and channel: a number m near its mean, and the sums of (x - m) and (x - m)^2. partial is (blocks, 3, C).
template <Isa I, class S>
void block_moments(const ChannelBlocks& b, const S* x, Accumulator<S>* partial) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  for_channel_tasks<I>(b, Sweep::forward, [&](const ChannelTask& task) {
    T* near = partial + task.block * 3 * b.C + task.c;
    T* first = near + b.C;
    T* second = first + b.C;
    for (T* sums : {near, first, second}) std::fill_n(sums, task.channels, T(0));
    const bool whole_rows = task.channels == b.C;
    const std::int64_t quarter = (task.rows + 3) / 4;
    const std::int64_t C = b.C, channels = task.channels;  // locals: a closure is read anew after every store
    const S* begin = x + task.offset;
    for_row_tiles(quarter, false, [=](std::int64_t row, auto count) __attribute__((always_inline)) {
      const S* source = begin + row * C;
      for_vectors<I, T>(channels, [&](std::int64_t j, auto lanes) {
        if (whole_rows) prefetch_rows<count(), V>(source, j);
        V sum = load<V>(near + j, lanes);
        for (int r = 0; r < count(); ++r) sum = sum + load<V>(source + r * C + j, lanes);
        store(sum, near + j, lanes);
      });
    });
    for_vectors<I, T>(task.channels, [&](std::int64_t j, auto lanes) {
      store(load<V>(near + j, lanes) / V::set(static_cast<T>(quarter)), near + j, lanes);
    });
    for_row_tiles(task.rows, false, [=](std::int64_t row, auto count) __attribute__((always_inline)) {
      const S* source = begin + row * C;
      for_vectors<I, T>(channels, [&](std::int64_t j, auto lanes) {
        if (whole_rows) prefetch_rows<count(), V>(source, j);
        const V center = load<V>(near + j, lanes);
        V sum = load<V>(first + j, lanes), squares = load<V>(second + j, lanes);
        for (int r = 0; r < count(); ++r) {
          const V d = load<V>(source + r * C + j, lanes) - center;
          sum = sum + d;
          squares = fma(d, d, squares);
        }
        store(sum, first + j, lanes);
        store(squares, second + j, lanes);
      });
    });
  });
}

// Per channel: a number near the mean, what the mean has more than it, and the sum of squares about the mean. moments
// is (3, C); there is a row at least.
template <Isa I, class S>
void channel_statistics(const ChannelBlocks& b, const S* x, Accumulator<S>* moments) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const Scratch<T> partial(static_cast<std::size_t>(b.blocks * 3 * b.C));
  block_moments<I, S>(b, x, partial.data());
  parallel_ranges(b.C, ChannelBlocks::kChunkChannels, [&](std::int64_t begin, std::int64_t end) {
    for_vectors<I, T>(end - begin, [&](std::int64_t i, auto lanes) {
      const T* source = partial.data() + begin + i;
      const V near = load<V>(source, lanes);
      V offset = V::zero(), squares = V::zero();
      std::int64_t seen = 0;
      for (std::int64_t block = 0; block < b.blocks; ++block, source += 3 * b.C) {
        const std::int64_t size = b.block_size(block);
        const V sum = load<V>(source + b.C, lanes);
        const V mean = sum / V::set(static_cast<T>(size));
        const V distance = (load<V>(source, lanes) - near) + mean - offset;
        const T share = static_cast<T>(size) / static_cast<T>(seen + size);
        squares = squares + (load<V>(source + 2 * b.C, lanes) - sum * mean);
        squares = fma(distance * distance, V::set(static_cast<T>(seen) * share), squares);
        offset = fma(distance, V::set(share), offset);
        seen += size;
      }
      T* out = moments + begin + i;
      store(near, out, lanes);
      store(offset, out + b.C, lanes);
      store(squares, out + 2 * b.C, lanes);
    });
  });
}

// map_channels where a row is so many vectors: then what their channels have in common stays in registers.
template <int kVectors, Isa I, class S, class At>
DRUPE_INLINE void map_narrow(const ChannelTask& task, S* out, bool stream, const At& at) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Value = decltype(at(0, AllLanes{}));
  constexpr std::int64_t kWidth = kVectors * V::kLanes;
  const bool pairs = kPairs<I, S> && kVectors % 2 == 0 && has_bf16_dot<I>();
  const auto value = [&]<int... k>(std::integer_sequence<int, k...>) {
    return std::array<Value, kVectors>{at(k * V::kLanes, AllLanes{})...};
  }(std::make_integer_sequence<int, kVectors>());
  for (std::int64_t i = task.offset; i < task.offset + task.rows * kWidth; i += kWidth) {
    if constexpr (kPairs<I, S> && kVectors % 2 == 0) {
      if (pairs) {
        for (int k = 0; k < kVectors; k += 2) {
          const std::int64_t low = i + k * V::kLanes;
          PairProduct<I>::pair(value[k](low, AllLanes{}), value[k + 1](low + V::kLanes, AllLanes{}))
              .store(reinterpret_cast<T*>(out + low));
        }
        continue;
      }
    }
    for (int k = 0; k < kVectors; ++k) {
      const V result = value[k](i + k * V::kLanes, AllLanes{});
      if constexpr (std::is_same_v<S, T>) {
        if (stream) {
          result.stream(out + i + k * V::kLanes);
          continue;
        }
      }
      result.store(out + i + k * V::kLanes);
    }
  }
  if (stream) stream_fence<I>();
}

// out = at(j, lanes)(element, lanes) for all rows and channels j of the task.
template <Isa I, class S, class At>
DRUPE_INLINE void map_channels(const ChannelBlocks& b, const ChannelTask& task, S* out, const At& at) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const bool stream = b.streams<S, I>();
  if (b.C == V::kLanes) return map_narrow<1, I, S>(task, out, stream, at);
  if (b.C == 2 * V::kLanes) return map_narrow<2, I, S>(task, out, stream, at);
  if constexpr (kRegisters<I> == 32) {
    if (b.C == 4 * V::kLanes) return map_narrow<4, I, S>(task, out, stream, at);
  }
  const bool pairs = has_bf16_dot<I>();
  const std::int64_t C = b.C, channels = task.channels, first = task.offset;
  for_row_tiles(task.rows, b.row_by_row<S>(), [=](std::int64_t row, auto count) __attribute__((always_inline)) {
    const std::int64_t offset = first + row * C;
    std::int64_t begin = 0;
    if constexpr (kPairs<I, S>) {
      if (pairs) {
        for (; begin + 2 * V::kLanes <= channels; begin += 2 * V::kLanes) {
          const auto low = at(begin, AllLanes{}), high = at(begin + V::kLanes, AllLanes{});
          for (int r = 0; r < count(); ++r) {
            const std::int64_t i = offset + r * C + begin;
            PairProduct<I>::pair(low(i, AllLanes{}), high(i + V::kLanes, AllLanes{}))
                .store(reinterpret_cast<T*>(out + i));
          }
        }
      }
    }
    if constexpr (std::is_same_v<S, T>) {
      if (stream) {
        for (; begin < channels; begin += V::kLanes) {
          const auto value = at(begin, AllLanes{});
          for (int r = 0; r < count(); ++r) {
            const std::int64_t i = offset + r * C + begin;
            value(i, AllLanes{}).stream(out + i);
          }
        }
      }
    }
    for_vectors<I, T>(channels - begin, [&](std::int64_t j, auto lanes) {
      const auto value = at(begin + j, lanes);
      for (int r = 0; r < count(); ++r) {
        const std::int64_t i = offset + r * C + begin + j;
        store(value(i, lanes), out + i, lanes);
      }
    });
  });
  if (stream) stream_fence<I>();
}

// y = (x - center) scale + shift; the coefficients are (3, C), center first.
template <Isa I, class S>
void channel_affine(const ChannelBlocks& b, const S* x, const Accumulator<S>* coefficients, S* y) {
  using V = Vec<Accumulator<S>, I>;
  for_channel_tasks<I>(b, Sweep::backward, [&](const ChannelTask& task) {
    const auto* table = coefficients + task.c;
    map_channels<I, S>(b, task, y, [x, table, C = b.C](std::int64_t j, auto lanes) {
      const V center = load<V>(table + j, lanes), scale = load<V>(table + C + j, lanes);
      const V shift = load<V>(table + 2 * C + j, lanes);
      return [=](std::int64_t i, auto all) { return fma(load<V>(x + i, all) - center, scale, shift); };
    });
  });
}

// Per channel: the sums of dy and dy (x - center), center being (C,). sums is (2, C).
template <Isa I, class S>
void channel_gradient_sums(const ChannelBlocks& b, const S* x, const S* dy, const Accumulator<S>* center,
                           Accumulator<S>* sums) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const Scratch<T> partial(static_cast<std::size_t>(b.blocks * 2 * b.C));
  for_channel_tasks<I>(b, Sweep::forward, [&](const ChannelTask& task) {
    T* plain = partial.data() + task.block * 2 * b.C + task.c;
    T* weighted = plain + b.C;
    for (T* own : {plain, weighted}) std::fill_n(own, task.channels, T(0));
    const std::int64_t C = b.C, channels = task.channels, begin = task.offset;
    const T* means = center + task.c;
    for_row_tiles(task.rows, b.row_by_row<S>(), [=](std::int64_t row, auto count) __attribute__((always_inline)) {
      const std::int64_t offset = begin + row * C;
      for_vectors<I, T>(channels, [&](std::int64_t j, auto lanes) {
        const V mean = load<V>(means + j, lanes);
        V sum = load<V>(plain + j, lanes), product = load<V>(weighted + j, lanes);
        for (int r = 0; r < count(); ++r) {
          const std::int64_t i = offset + r * C + j;
          const V d = load<V>(dy + i, lanes);
          sum = sum + d;
          product = fma(d, load<V>(x + i, lanes) - mean, product);
        }
        store(sum, plain + j, lanes);
        store(product, weighted + j, lanes);
      });
    });
  });
  parallel_ranges(2 * b.C, ChannelBlocks::kChunkChannels, [&](std::int64_t begin, std::int64_t end) {
    for_vectors<I, T>(end - begin, [&](std::int64_t i, auto lanes) {
      V sum = V::zero(), lost = V::zero();  // Kahan's: there may be many blocks
      for (std::int64_t block = 0; block < b.blocks; ++block) {
        const V term = load<V>(partial.data() + block * 2 * b.C + begin + i, lanes) - lost;
        const V next = sum + term;
        lost = (next - sum) - term;
        sum = next;
      }
      store(sum, sums + begin + i, lanes);
    });
  });
}

// dx = dy scale + (x - center) slope + shift; the coefficients are (4, C): center, scale, slope, shift.
template <Isa I, class S>
void channel_gradient(const ChannelBlocks& b, const S* x, const S* dy, const Accumulator<S>* coefficients, S* dx) {
  using V = Vec<Accumulator<S>, I>;
  for_channel_tasks<I>(b, Sweep::backward, [&](const ChannelTask& task) {
    const auto* table = coefficients + task.c;
    map_channels<I, S>(b, task, dx, [x, dy, table, C = b.C](std::int64_t j, auto lanes) {
      const V center = load<V>(table + j, lanes), scale = load<V>(table + C + j, lanes);
      const V slope = load<V>(table + 2 * C + j, lanes), shift = load<V>(table + 3 * C + j, lanes);
      return [=](std::int64_t i, auto all) {
        return fma(load<V>(dy + i, all), scale, fma(load<V>(x + i, all) - center, slope, shift));
      };
    });
  });
}

}  // namespace drupe::cpu
