// A block of 256 threads owns a chunk of one sample's rows and up to `across` packs of channels (16 bytes where C and
// the pointers allow, else one channel). A thread keeps its pack and goes down the chunk's rows, four in flight; its
// sums are in the accumulator's type, over at most 512 rows, and are merged over the block as a tree, in double, into
// one partial a chunk and channel. Statistics are taken about the thread's first value and merged as Chan, Golub &
// LeVeque (1979) do, so that a large mean does not cancel.
// Bytes: each operand once, and 16 bytes a chunk and channel.
#include "cuda/channel_norm.h"

#include <algorithm>
#include <type_traits>

#include "core/dispatch.h"
#include "core/quotient.h"
#include "cuda/tile/grid.cuh"
#include "cuda/tile/vec.cuh"

namespace drupe::cuda {
namespace {

// A thread's share: `rows` rows from `offset` on, `step` elements apart; lane: its place along the rows.
struct Share {
  std::int64_t sample, partial, channel, offset, step;
  int rows, lane;
};

__device__ __forceinline__ Share share_of(const ChannelTiling& tiling, std::int64_t block) {
  const int thread = static_cast<int>(threadIdx.x), down = kChannelThreads / tiling.across;
  const int lane = thread / tiling.across;
  const std::int64_t partial = quotient(block, tiling.columns), column = block - partial * tiling.columns;
  const std::int64_t sample = quotient(partial, tiling.chunks), chunk = partial - sample * tiling.chunks;
  const std::int64_t channel = (column * tiling.across + thread % tiling.across) * tiling.pack;
  const std::int64_t first = chunk * tiling.chunk_rows + lane;
  const int left = static_cast<int>(tiling.chunk_size(chunk)) - lane;
  return {.sample = sample,
          .partial = partial,
          .channel = channel,
          .offset = (sample * tiling.rows + first) * tiling.C + channel,
          .step = down * tiling.C,
          .rows = channel < tiling.C && left > 0 ? (left + down - 1) / down : 0,
          .lane = lane};
}

// Calls f(count, offset) for batches of kRowsInFlight of a thread's rows, then for single ones; count is a constant.
template <class F>
__device__ __forceinline__ void for_rows(const Share& share, F&& f) {
  std::int64_t offset = share.offset;
  int row = 0;
  for (; row + kRowsInFlight <= share.rows; row += kRowsInFlight, offset += kRowsInFlight * share.step) {
    f(std::integral_constant<int, kRowsInFlight>{}, offset);
  }
  for (; row < share.rows; ++row, offset += share.step) f(std::integral_constant<int, 1>{}, offset);
}

template <int kRows, class T, int kPack>
__device__ __forceinline__ void load_rows(Pack<T, kPack> (&rows)[kRows], const T* from, std::int64_t step) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) rows[r] = load_pack<kPack>(from + r * step);
}

template <class A, int kPack>
__device__ __forceinline__ void load_values(A (&values)[kPack], const A* from) {
#pragma unroll
  for (int k = 0; k < kPack; ++k) values[k] = from[k];
}

// Two numbers a channel, per thread.
template <int kPack>
struct PairStorage {
  double first[kPack][kChannelThreads], second[kPack][kChannelThreads];
  int rows[kChannelThreads];
};

// Calls merge(mine, other) for pairs of threads along the rows until lane 0 has it all.
template <class F>
__device__ __forceinline__ void merge_lanes(int across, int lane, F&& merge) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int half = kChannelThreads / across / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) merge(thread, thread + half * across);
  }
}

// Only lane 0 of a share that has channels writes.
template <int kPack>
__device__ __forceinline__ void store_partial(const ChannelTiling& tiling, const Share& share,
                                              const PairStorage<kPack>& storage, double* partial) {
  if (share.lane > 0 || share.channel >= tiling.C) return;
  double* to = partial + share.partial * 2 * tiling.C + share.channel;
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    to[k] = storage.first[k][threadIdx.x];
    to[tiling.C + k] = storage.second[k][threadIdx.x];
  }
}

template <class T, int kPack>
__global__ __launch_bounds__(kChannelThreads) void channel_statistics_kernel(ChannelTiling tiling, const T* x,
                                                                             double* partial) {
  using A = Accumulator<T>;
  if (block_number() >= tiling.blocks()) return;
  auto& storage = shared_storage<PairStorage<kPack>>();
  const int thread = static_cast<int>(threadIdx.x);
  const Share share = share_of(tiling, block_number());
  A pivot[kPack] = {}, mean[kPack] = {}, second[kPack] = {}, seen = 0;
  if (share.rows > 0) {
    const auto first = load_pack<kPack>(x + share.offset);
#pragma unroll
    for (int k = 0; k < kPack; ++k) pivot[k] = widen(first.element[k]);
  }
  for_rows(share, [&](auto count, std::int64_t offset) {
    constexpr int kRows = decltype(count)::value;
    Pack<T, kPack> rows[kRows];
    load_rows(rows, x + offset, share.step);
    const A weight = A(kRows) / (seen + A(kRows));
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      A d[kRows], sum = 0, squares = 0;
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum += d[r] = widen(rows[r].element[k]) - pivot[k];
      const A own = sum * A(1.0 / kRows), distance = own - mean[k];
#pragma unroll
      for (int r = 0; r < kRows; ++r) squares += (d[r] - own) * (d[r] - own);
      mean[k] += distance * weight;
      second[k] += squares + distance * distance * (seen * weight);
    }
    seen += A(kRows);
  });
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    storage.first[k][thread] = static_cast<double>(pivot[k]) + static_cast<double>(mean[k]);
    storage.second[k][thread] = static_cast<double>(second[k]);
  }
  storage.rows[thread] = share.rows;
  merge_lanes(tiling.across, share.lane, [&](int mine, int other) {
    const int added = storage.rows[other];
    if (added == 0) return;
    const double before = storage.rows[mine], weight = added / (before + added);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const double distance = storage.first[k][other] - storage.first[k][mine];
      storage.first[k][mine] += distance * weight;
      storage.second[k][mine] += storage.second[k][other] + distance * distance * (before * weight);
    }
    storage.rows[mine] += added;
  });
  store_partial(tiling, share, storage, partial);
}

template <class T, int kPack>
__global__ __launch_bounds__(kChannelThreads) void channel_gradient_sums_kernel(ChannelTiling tiling, const T* x,
                                                                                const T* dy,
                                                                                const Accumulator<T>* center,
                                                                                std::int64_t width, double* partial) {
  using A = Accumulator<T>;
  if (block_number() >= tiling.blocks()) return;
  auto& storage = shared_storage<PairStorage<kPack>>();
  const int thread = static_cast<int>(threadIdx.x);
  const Share share = share_of(tiling, block_number());
  A mean[kPack] = {}, plain[kPack] = {}, weighted[kPack] = {};
  if (share.rows > 0) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) mean[k] = center[quotient(share.sample * tiling.C + share.channel + k, width)];
  }
  for_rows(share, [&](auto count, std::int64_t offset) {
    constexpr int kRows = decltype(count)::value;
    Pack<T, kPack> values[kRows], gradients[kRows];
    load_rows(values, x + offset, share.step);
    load_rows(gradients, dy + offset, share.step);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        const A d = widen(gradients[r].element[k]);
        plain[k] += d;
        weighted[k] += d * (widen(values[r].element[k]) - mean[k]);
      }
    }
  });
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    storage.first[k][thread] = static_cast<double>(plain[k]);
    storage.second[k][thread] = static_cast<double>(weighted[k]);
  }
  merge_lanes(tiling.across, share.lane, [&](int mine, int other) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      storage.first[k][mine] += storage.first[k][other];
      storage.second[k][mine] += storage.second[k][other];
    }
  });
  store_partial(tiling, share, storage, partial);
}

template <class T, int kPack>
__global__ __launch_bounds__(kChannelThreads) void channel_affine_kernel(ChannelTiling tiling, const T* x,
                                                                         const Accumulator<T>* coefficients, T* y) {
  using A = Accumulator<T>;
  if (block_number() >= tiling.blocks()) return;
  const Share share = share_of(tiling, block_number());
  if (share.rows == 0) return;
  A center[kPack], scale[kPack], shift[kPack];
  const A* table = coefficients + share.sample * 3 * tiling.C + share.channel;
  load_values(center, table);
  load_values(scale, table + tiling.C);
  load_values(shift, table + 2 * tiling.C);
  for_rows(share, [&](auto count, std::int64_t offset) {
    constexpr int kRows = decltype(count)::value;
    Pack<T, kPack> rows[kRows];
    load_rows(rows, x + offset, share.step);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        rows[r].element[k] = narrow<T>((widen(rows[r].element[k]) - center[k]) * scale[k] + shift[k]);
      }
      store_pack(y + offset + r * share.step, rows[r]);
    }
  });
}

template <class T, int kPack>
__global__ __launch_bounds__(kChannelThreads) void channel_gradient_kernel(ChannelTiling tiling, const T* x,
                                                                           const T* dy,
                                                                           const Accumulator<T>* coefficients, T* dx) {
  using A = Accumulator<T>;
  if (block_number() >= tiling.blocks()) return;
  const Share share = share_of(tiling, block_number());
  if (share.rows == 0) return;
  A center[kPack], scale[kPack], slope[kPack], shift[kPack];
  const A* table = coefficients + share.sample * 4 * tiling.C + share.channel;
  load_values(center, table);
  load_values(scale, table + tiling.C);
  load_values(slope, table + 2 * tiling.C);
  load_values(shift, table + 3 * tiling.C);
  for_rows(share, [&](auto count, std::int64_t offset) {
    constexpr int kRows = decltype(count)::value;
    Pack<T, kPack> values[kRows], gradients[kRows];
    load_rows(values, x + offset, share.step);
    load_rows(gradients, dy + offset, share.step);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        const A rest = (widen(values[r].element[k]) - center[k]) * slope[k] + shift[k];
        gradients[r].element[k] = narrow<T>(widen(gradients[r].element[k]) * scale[k] + rest);
      }
      store_pack(dx + offset + r * share.step, gradients[r]);
    }
  });
}

int pack_for(std::int64_t C, Dtype dtype, const void* a, const void* b, const void* c) {
  const auto bytes = [](const void* pointer) { return static_cast<const std::byte*>(pointer); };
  const int pack = 16 / static_cast<int>(size_of(dtype));
  return C % pack == 0 && is_pack_aligned(bytes(a), bytes(b), bytes(c)) ? pack : 1;
}

// Calls f.operator()<T, kPack>() for a tiling's packs.
template <class F>
void dispatch_packs(Dtype dtype, int pack, F&& f) {
  dispatch_float(dtype, [&]<class T>() {
    if (pack == 1) {
      f.template operator()<T, 1>();
    } else {
      f.template operator()<T, kPackSize<T>>();
    }
  });
}

LaunchConfig config_of(const ChannelTiling& tiling, std::size_t shared_bytes = 0) {
  return {.grid = grid_of(tiling.blocks()), .block = {kChannelThreads}, .shared_bytes = shared_bytes};
}

}  // namespace

ChannelTiling choose_channel_tiling(std::int64_t samples, std::int64_t rows, std::int64_t C, int pack,
                                    std::int64_t least_rows) {
  constexpr std::int64_t kBlocks = 1024, kMostRows = 512;
  const std::int64_t packs = C / pack;
  int across = 1;
  while (across < packs && (across < 32 || (across < kChannelThreads && kChannelThreads / across > rows))) across *= 2;
  const std::int64_t down = kChannelThreads / across, step = down * kRowsInFlight;
  const std::int64_t columns = (packs + across - 1) / across;
  const std::int64_t wanted = (rows * samples * columns + kBlocks - 1) / kBlocks;
  const std::int64_t chunk_rows = std::clamp((wanted + step - 1) / step * step, down * least_rows, down * kMostRows);
  return {.samples = samples,
          .rows = rows,
          .C = C,
          .across = across,
          .columns = columns,
          .chunk_rows = chunk_rows,
          .chunks = (rows + chunk_rows - 1) / chunk_rows,
          .pack = pack};
}

ChannelTiling sum_tiling(std::int64_t samples, std::int64_t rows, std::int64_t C, Dtype dtype, const void* x,
                         const void* dy) {
  return choose_channel_tiling(samples, rows, C, pack_for(C, dtype, x, dy, nullptr), 4 * kRowsInFlight);
}

void channel_statistics(const ChannelTiling& tiling, Dtype dtype, const void* x, double* partial, Stream stream) {
  if (tiling.blocks() == 0) return;
  dispatch_packs(dtype, tiling.pack, [&]<class T, int kPack>() {
    launch<channel_statistics_kernel<T, kPack>>(config_of(tiling, sizeof(PairStorage<kPack>)), stream, tiling,
                                                static_cast<const T*>(x), partial);
  });
}

void channel_gradient_sums(const ChannelTiling& tiling, Dtype dtype, const void* x, const void* dy, const void* center,
                           std::int64_t groups, double* partial, Stream stream) {
  if (tiling.blocks() == 0) return;
  dispatch_packs(dtype, tiling.pack, [&]<class T, int kPack>() {
    launch<channel_gradient_sums_kernel<T, kPack>>(
        config_of(tiling, sizeof(PairStorage<kPack>)), stream, tiling, static_cast<const T*>(x),
        static_cast<const T*>(dy), static_cast<const Accumulator<T>*>(center), tiling.C / groups, partial);
  });
}

void channel_affine(std::int64_t samples, std::int64_t rows, std::int64_t C, Dtype dtype, const void* x,
                    const void* coefficients, void* y, Stream stream) {
  if (samples * rows * C == 0) return;
  const ChannelTiling tiling =
      choose_channel_tiling(samples, rows, C, pack_for(C, dtype, x, y, nullptr), kRowsInFlight);
  dispatch_packs(dtype, tiling.pack, [&]<class T, int kPack>() {
    launch<channel_affine_kernel<T, kPack>>(config_of(tiling), stream, tiling, static_cast<const T*>(x),
                                            static_cast<const Accumulator<T>*>(coefficients), static_cast<T*>(y));
  });
}

void channel_gradient(std::int64_t samples, std::int64_t rows, std::int64_t C, Dtype dtype, const void* x,
                      const void* dy, const void* coefficients, void* dx, Stream stream) {
  if (samples * rows * C == 0) return;
  const ChannelTiling tiling = choose_channel_tiling(samples, rows, C, pack_for(C, dtype, x, dy, dx), kRowsInFlight);
  dispatch_packs(dtype, tiling.pack, [&]<class T, int kPack>() {
    launch<channel_gradient_kernel<T, kPack>>(config_of(tiling), stream, tiling, static_cast<const T*>(x),
                                              static_cast<const T*>(dy),
                                              static_cast<const Accumulator<T>*>(coefficients), static_cast<T*>(dx));
  });
}

}  // namespace drupe::cuda
