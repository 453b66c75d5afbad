// The weight's gradient as an implicit matrix product: rows are dy's channels, columns (tap_h, tap_w, channel) of the
// gathered image, the depth all pixels (n, p, q), in stretches whose partial sums go to memory. A block owns a tile of
// the result over one stretch. Bytes: the image once per tap and dy once per column tile, both from the caches.
#pragma once

#include "cuda/conv2d/tensor_tile.cuh"
#include "cuda/conv2d/thread_tile.cuh"

namespace drupe::cuda::conv {

// A row of the gather that walks on.
struct PixelWalk {
  int i, j;
  std::int64_t line;  // of the source: the image's first

  template <class T>
  __device__ __forceinline__ PixelWalk(const Gather<T>& gather, std::int64_t pixel) {
    const std::int64_t row = pixel / gather.w.rows, image = row / gather.h.rows;
    i = static_cast<int>(row - image * gather.h.rows);
    j = static_cast<int>(pixel - row * gather.w.rows);
    line = image * gather.h.source;
  }
  template <class T>
  __device__ __forceinline__ void advance(const Gather<T>& gather, int by) {
    j += by;
    while (j >= gather.w.rows) {
      j -= gather.w.rows;
      if (++i == gather.h.rows) {
        i = 0;
        line += gather.h.source;
      }
    }
  }
  template <class T>
  __device__ __forceinline__ Position position(const Gather<T>& gather) const {
    const int h = i * gather.h.step + gather.h.base, w = j * gather.w.step + gather.w.base;
    return {h, w, ((line + h) * gather.w.source + w) * gather.pitch};
  }
};

template <class T>
struct WeightProduct {
  Gather<T> gather;
  const T* dy;
  std::int64_t dy_pitch;    // channels of a pixel
  bool dy_packed;           // whether chunks of a group's channels are aligned
  Accumulator<T>* partial;  // (splits, groups, rows, pitch)
  std::int64_t rows, cols, pitch, groups;
  std::int64_t pixels, stretch, splits;  // a stretch fits 32 bits
  std::int64_t row_tiles, col_tiles;     // how blocks are numbered: column tiles first, then rows, groups, stretches
};

struct WeightTile {
  std::int64_t row0, col0, group, split;
};

template <class T>
__device__ __forceinline__ WeightTile tile_of(const WeightProduct<T>& product, int block_rows, int block_cols) {
  const std::int64_t block = blockIdx.x;
  const std::int64_t rest = block / product.col_tiles, rest2 = rest / product.row_tiles;
  const std::int64_t split = rest2 / product.groups;
  return {(rest - rest2 * product.row_tiles) * block_rows, (block - rest * product.col_tiles) * block_cols,
          rest2 - split * product.groups, split};
}

// Brings slices of A::kRows pixels: of dy to `a`, of the image to `b`; a thread takes the same kPack columns of each
// pixel that it brings. kPack is 1 (elements of 4 or 8 bytes, wherever they lie) or a chunk's.
template <class T, class A, class B, int kThreads, int kPack>
struct WeightLoader {
  static constexpr int kDepth = A::kRows;
  static constexpr int kPacksA = A::kCols / kPack, kPacksB = B::kCols / kPack;
  static constexpr int kStepA = kThreads / kPacksA, kStepB = kThreads / kPacksB;  // pixels of a pass
  static_assert(kStepA * kPacksA == kThreads && kDepth % kStepA == 0);
  static_assert(kStepB * kPacksB == kThreads && kDepth % kStepB == 0 && B::kRows == kDepth);

  const WeightProduct<T>& product;
  int left;     // pixels of the stretch, from the next slice on
  int count;    // of dy's channels from this thread's on, kPack at most
  const T* dy;  // at this thread's next pixel
  const T* source;
  PixelWalk walk;
  Depth depth;

  __device__ __forceinline__ WeightLoader(const WeightProduct<T>& product, const WeightTile& at)
      : product(product), walk(product.gather, at.split * product.stretch + row_b()) {
    const std::int64_t begin = at.split * product.stretch, pixels = product.pixels - begin;
    left = static_cast<int>(pixels < product.stretch ? pixels : product.stretch);
    const std::int64_t channel = at.row0 + pack_a() * kPack, channels = product.rows - channel;
    count = channels < kPack ? static_cast<int>(channels < 0 ? 0 : channels) : kPack;
    dy = product.dy + (begin + row_a()) * product.dy_pitch + at.group * product.rows + channel;
    source = product.gather.source + at.group * product.gather.channels;
    depth.seek(product.gather, at.col0 + pack_b() * kPack);
  }
  __device__ __forceinline__ static int row_a() { return static_cast<int>(threadIdx.x) / kPacksA; }
  __device__ __forceinline__ static int row_b() { return static_cast<int>(threadIdx.x) / kPacksB; }
  __device__ __forceinline__ static int pack_a() { return static_cast<int>(threadIdx.x) % kPacksA; }
  __device__ __forceinline__ static int pack_b() { return static_cast<int>(threadIdx.x) % kPacksB; }
  __device__ __forceinline__ int slices() const { return (left + kDepth - 1) / kDepth; }

  __device__ __forceinline__ void load(A& a, B& b) {
    const Gather<T>& gather = product.gather;
    [[maybe_unused]] constexpr int kUnroll = kPack == 1 ? 2 : kDepth;  // registers are short
#pragma unroll kUnroll
    for (int k = 0; k < kDepth; k += kStepA) {
      const int here = k + row_a() < left ? count : 0;
      if constexpr (kPack == 1) {
        cp_async<static_cast<int>(sizeof(T))>(a.element + (k + row_a()) * A::kCols + pack_a(),
                                              here > 0 ? dy : product.dy, here > 0);
      } else {
        copy_chunk(a.chunk(k + row_a(), pack_a()), dy, here, product.dy_packed, product.dy);
      }
      dy += kStepA * product.dy_pitch;
    }
#pragma unroll kUnroll
    for (int k = 0; k < kDepth; k += kStepB) {
      const bool wanted = k + row_b() < left;
      const Position row = walk.position(gather);
      if constexpr (kPack == 1) {
        const bool valid = wanted && is_inside(gather, row, depth);
        cp_async<static_cast<int>(sizeof(T))>(b.element + (k + row_b()) * B::kCols + pack_b(),
                                              valid ? source + row.offset + depth.offset : source, valid);
      } else {
        gather_chunk(b.chunk(k + row_b(), pack_b()), gather, source, row, depth, wanted);
      }
      walk.advance(gather, kStepB);
    }
    left -= kDepth;
  }
};

// kCount sums of neighbouring columns to the stretch's partial result, which is padded to whole packs.
template <int kCount, class T>
__device__ __forceinline__ void store_partial(const WeightProduct<T>& product, const WeightTile& at, int i, int j,
                                              const Pack<Accumulator<T>, kCount>& sums) {
  const std::int64_t row = at.row0 + i, col = at.col0 + j;
  if (row >= product.rows || col >= product.pitch) return;
  store_pack(product.partial + ((at.split * product.groups + at.group) * product.rows + row) * product.pitch + col,
             sums);
}

template <class T, int kSize>
struct ThreadWeightStorage {
  static constexpr int kStages = 3;
  using Tile = PlainTile<T, kThreadTileDepth<T>, ThreadTile<T, kSize>::kBlock>;
  struct Stage {
    Tile a, b;
  } stage[kStages];
};

template <class T, int kSize>
__global__ __launch_bounds__(kThreadTileThreads, 2) void conv2d_thread_weight_kernel(WeightProduct<T> product) {
  using Storage = ThreadWeightStorage<T, kSize>;
  constexpr int kPack = kPackSize<T>;
  auto& storage = shared_storage<Storage>();
  const WeightTile at = tile_of(product, ThreadTile<T, kSize>::kBlock, ThreadTile<T, kSize>::kBlock);
  WeightLoader<T, typename Storage::Tile, typename Storage::Tile, kThreadTileThreads, 1> loader(product, at);
  ThreadTile<T, kSize> tile;
  tile.clear();
  pipeline<Storage::kStages>(
      loader.slices(), [&](int stage) { loader.load(storage.stage[stage].a, storage.stage[stage].b); },
      [&](int stage) { tile.multiply(storage.stage[stage].a, storage.stage[stage].b); });
  tile.for_each_pack([&](int i, int j, T(&sums)[kPack]) {
    Pack<T, kPack> pack;
#pragma unroll
    for (int e = 0; e < kPack; ++e) pack.element[e] = sums[e];
    store_partial<kPack>(product, at, i, j, pack);
  });
}

template <class T, class Config>
struct TensorWeightStorage {
  using TileA = SwizzledTile<T, Config::kBlockK, Config::kBlockM>;
  using TileB = SwizzledTile<T, Config::kBlockK, Config::kBlockN>;
  struct Stage {
    TileA a;
    TileB b;
  } stage[Config::kStages];
};

template <class T, class Config>
__global__ __launch_bounds__(Config::kThreads, 2) void conv2d_tensor_weight_kernel(WeightProduct<T> product) {
  using Storage = TensorWeightStorage<T, Config>;
  auto& storage = shared_storage<Storage>();
  const WeightTile at = tile_of(product, Config::kBlockM, Config::kBlockN);
  WeightLoader<T, typename Storage::TileA, typename Storage::TileB, Config::kThreads, kPackSize<T>> loader(product, at);
  WarpTile<Config::kWarpM, Config::kWarpN> sums;
  sums.fill(0);
  pipeline<Config::kStages>(
      loader.slices(), [&](int stage) { loader.load(storage.stage[stage].a, storage.stage[stage].b); },
      [&](int stage) { multiply_stage<T, Config, true>(sums, storage.stage[stage].a, storage.stage[stage].b); });
  for_each_pair<Config>(sums, [&](int i, int j, float first, float second) {
    store_partial<2>(product, at, i, j, Pack<float, 2>{first, second});
  });
}

}  // namespace drupe::cuda::conv
