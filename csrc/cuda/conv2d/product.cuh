// The convolution and its input's gradient as implicit matrix products: rows (n, i, j) of the gathered image, columns
// of the packed filters, depth (tap_h, tap_w, channel). A block owns a tile of the result; slices of the depth stream
// through kStages stages of shared memory. Bytes: the image once from memory and once per tap from the caches.
#pragma once

#include "cuda/conv2d/epilogue.cuh"
#include "cuda/conv2d/tensor_tile.cuh"
#include "cuda/conv2d/thread_tile.cuh"

namespace drupe::cuda::conv {

template <class T>
struct Product {
  Gather<T> gather;
  const T* filters;                // (groups, depth, filter_pitch), zero beyond cols
  std::int64_t filter_pitch;       // a multiple of 16 bytes
  std::int64_t rows, cols, depth;  // of one group
  std::int64_t groups;
  std::int64_t column_tiles, row_tiles;  // how blocks are numbered: column tiles, groups, row tiles, splits
  std::int64_t splits, stretch;          // the depth is cut in stretches
  Accumulator<T>* partial;               // (splits, groups, rows, filter_pitch); null where there is one alone
  Epilogue<T> epilogue;
};

// Products of one launch, independent of each other: the phases of an input's gradient. Their blocks follow each other.
inline constexpr int kProducts = 4;
template <class T>
struct ProductBatch {
  Product<T> product[kProducts];
  std::int64_t first_block[kProducts];  // beyond the grid for those that are not there
};

struct ProductTile {
  std::int64_t row0, col0, group, split;
  std::int64_t begin, depth;  // of the stretch
};

template <class T>
__device__ __forceinline__ int product_of(const ProductBatch<T>& batch) {
  int index = 0;
#pragma unroll
  for (int i = 1; i < kProducts; ++i) index += static_cast<std::int64_t>(blockIdx.x) >= batch.first_block[i];
  return index;
}

template <class T>
__device__ __forceinline__ ProductTile tile_of(const Product<T>& product, std::int64_t block, int block_rows,
                                               int block_cols) {
  const std::int64_t rest = block / product.column_tiles;
  const std::int64_t rest2 = rest / product.groups;
  const std::int64_t split = rest2 / product.row_tiles;
  const std::int64_t begin = split * product.stretch, depth = product.depth - begin;
  return {.row0 = (rest2 - split * product.row_tiles) * block_rows,
          .col0 = (block - rest * product.column_tiles) * block_cols,
          .group = rest - rest2 * product.groups,
          .split = split,
          .begin = begin,
          .depth = depth < product.stretch ? depth : product.stretch};
}

// kPackSize neighbours of the tile's sums. Large tiles, without kSplits, take the whole depth.
template <bool kSplits, class T>
__device__ __forceinline__ void finish_sums(const Product<T>& product, const ProductTile& at, int i, int j,
                                            Accumulator<T> (&sum)[kPackSize<T>]) {
  constexpr int kPack = kPackSize<T>;
  const std::int64_t row = at.row0 + i, col = at.col0 + j;
  if (row >= product.rows || col >= product.cols) return;
  if (kSplits && product.partial) {
    Pack<Accumulator<T>, kPack> pack;
#pragma unroll
    for (int e = 0; e < kPack; ++e) pack.element[e] = sum[e];
    const std::int64_t line = (at.split * product.groups + at.group) * product.rows + row;
    store_pack(product.partial + line * product.filter_pitch + col, pack);
  } else {
    product.epilogue.finish(sum, product.epilogue.offset_of(row), at.group * product.cols + col, product.cols - col);
  }
}

inline constexpr int kAddThreads = 128;

// The sum of the stretches, in order, and what is left to do with it. A thread owns a pack of a row.
template <class T>
__global__ __launch_bounds__(kAddThreads) void conv2d_add_splits_kernel(Product<T> product) {
  constexpr int kPack = kPackSize<T>;
  using A = Accumulator<T>;
  const std::int64_t packs = product.filter_pitch / kPack;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kAddThreads + threadIdx.x;
  const std::int64_t line = index / packs, row = line / product.groups, group = line - row * product.groups;
  const std::int64_t col = (index - line * packs) * kPack;
  if (row >= product.rows) return;
  A sum[kPack] = {};
  for (std::int64_t split = 0; split < product.splits; ++split) {
    const std::int64_t from = (split * product.groups + group) * product.rows + row;
    const auto more = load_pack<kPack>(product.partial + from * product.filter_pitch + col);
#pragma unroll
    for (int e = 0; e < kPack; ++e) sum[e] += more.element[e];
  }
  product.epilogue.finish(sum, product.epilogue.offset_of(row), group * product.cols + col, product.cols - col);
}

// Rows beyond the last read the last one, and are not stored.
template <class T>
__device__ __forceinline__ Position row_position(const Product<T>& product, std::int64_t row) {
  return position_of(product.gather, row < product.rows ? row : product.rows - 1);
}

// Brings slices of the filters, Tile::kRows x Tile::kCols of them.
template <class T, class Tile, int kThreads>
struct FilterLoader {
  static constexpr int kChunks = Tile::kCols / kPackSize<T>, kStep = kThreads / kChunks;  // rows of a pass
  static_assert(kStep * kChunks == kThreads && Tile::kRows % kStep == 0);

  const Product<T>& product;
  const T* from;      // this thread's chunk of the next slice
  std::int64_t left;  // of the depth, from this thread's row on; none for columns beyond the last

  __device__ __forceinline__ FilterLoader(const Product<T>& product, const ProductTile& at) : product(product) {
    const std::int64_t col = at.col0 + chunk() * kPackSize<T>;
    from = product.filters + (at.group * product.depth + at.begin + row()) * product.filter_pitch + col;
    left = col < product.filter_pitch ? at.depth - row() : 0;
  }
  __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x) / kChunks; }
  __device__ __forceinline__ static int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }

  __device__ __forceinline__ void load(Tile& tile) {
#pragma unroll
    for (int k = 0; k < Tile::kRows; k += kStep) {
      const bool valid = k < left;
      cp_async<16>(tile.chunk(row() + k, chunk()), valid ? from : product.filters, valid);
      from += kStep * product.filter_pitch;
    }
    left -= Tile::kRows;
  }
};

// ---- float and double

template <class T, int kSize>
struct ThreadProductStorage {
  static constexpr int kStages = 3;
  using Tile = PlainTile<T, kThreadTileDepth<T>, ThreadTile<T, kSize>::kBlock>;  // a column of a is a row of the image
  struct Stage {
    Tile a, b;
  } stage[kStages];
};

template <class T, int kSize>
__global__ __launch_bounds__(kThreadTileThreads, 2) void conv2d_thread_product_kernel(const ProductBatch<T> batch) {
  using Storage = ThreadProductStorage<T, kSize>;
  constexpr int kBlock = ThreadTile<T, kSize>::kBlock, kDepth = kThreadTileDepth<T>;
  // A thread brings neighbouring elements of one row, element by element: they end up in a column.
  constexpr int kElements = kDepth * kBlock / kThreadTileThreads;
  auto& storage = shared_storage<Storage>();
  const int index = product_of(batch);
  const Product<T>& product = batch.product[index];
  const Gather<T>& gather = product.gather;
  const ProductTile at = tile_of(product, blockIdx.x - batch.first_block[index], kBlock, kBlock);
  const int own_row = static_cast<int>(threadIdx.x) % kBlock;
  const int own_k = static_cast<int>(threadIdx.x) / kBlock * kElements;
  const T* source = gather.source + at.group * gather.channels;
  const Position row = row_position(product, at.row0 + own_row);
  const std::int64_t slices = (at.depth + kDepth - 1) / kDepth;
  Depth depth;
  if (slices > 0) depth.seek(gather, at.begin + own_k);
  FilterLoader<T, typename Storage::Tile, kThreadTileThreads> filters(product, at);
  const auto load = [&](int stage) {
    auto& [a, b] = storage.stage[stage];
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const bool valid = is_inside(gather, row, depth);
      const T* from = valid ? source + row.offset + depth.offset : source;
      cp_async<static_cast<int>(sizeof(T))>(a.element + (own_k + e) * kBlock + own_row, from, valid);
      depth.advance(gather, e + 1 < kElements ? 1 : 1 + kDepth - kElements);
    }
    filters.load(b);
  };
  ThreadTile<T, kSize> tile;
  tile.clear();
  pipeline<Storage::kStages>(slices, load,
                             [&](int stage) { tile.multiply(storage.stage[stage].a, storage.stage[stage].b); });
  tile.for_each_pack([&](int i, int j, T(&sum)[kPackSize<T>]) { finish_sums<kSize == 4>(product, at, i, j, sum); });
}

// ---- float16 and bfloat16, on the tensor cores

template <class T, class Config>
union TensorProductStorage {
  static constexpr int kSumPitch = Config::kBlockN + 8;  // of rows of sums: 2 rows of a fragment meet in no bank
  struct Stage {
    SwizzledTile<T, Config::kBlockM, Config::kBlockK> a;
    SwizzledTile<T, Config::kBlockK, Config::kBlockN> b;
  } stage[Config::kStages];
  float sum[Config::kBlockM * kSumPitch];
};

template <class T, class Config>
__global__ __launch_bounds__(Config::kThreads, 2) void conv2d_tensor_product_kernel(const ProductBatch<T> batch) {
  using Storage = TensorProductStorage<T, Config>;
  constexpr int kPack = kPackSize<T>, kChunks = Config::kBlockK / kPack, kThreads = Config::kThreads;
  constexpr int kRowsPerPass = kThreads / kChunks, kPasses = Config::kBlockM / kRowsPerPass;
  static_assert(kPasses * kRowsPerPass == Config::kBlockM);
  auto& storage = shared_storage<Storage>();
  const int index = product_of(batch);
  const Product<T>& product = batch.product[index];
  const Gather<T>& gather = product.gather;
  const ProductTile at = tile_of(product, blockIdx.x - batch.first_block[index], Config::kBlockM, Config::kBlockN);
  const int own_row = static_cast<int>(threadIdx.x) / kChunks, own_chunk = static_cast<int>(threadIdx.x) % kChunks;
  const T* source = gather.source + at.group * gather.channels;
  Position rows[kPasses];
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    rows[pass] = row_position(product, at.row0 + own_row + pass * kRowsPerPass);
  }
  const std::int64_t slices = (at.depth + Config::kBlockK - 1) / Config::kBlockK;
  Depth depth;
  if (slices > 0) depth.seek(gather, at.begin + own_chunk * kPack);
  FilterLoader<T, SwizzledTile<T, Config::kBlockK, Config::kBlockN>, kThreads> filters(product, at);
  const auto load = [&](int stage) {
    auto& [a, b] = storage.stage[stage];
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      gather_chunk(a.chunk(own_row + pass * kRowsPerPass, own_chunk), gather, source, rows[pass], depth, true);
    }
    depth.advance(gather, Config::kBlockK);
    filters.load(b);
  };
  WarpTile<Config::kWarpM, Config::kWarpN> sums;
  sums.fill(0);
  pipeline<Config::kStages>(slices, load, [&](int stage) {
    multiply_stage<T, Config, false>(sums, storage.stage[stage].a, storage.stage[stage].b);
  });
  // Through shared memory, so that rows are stored in chunks of 16 bytes.
  constexpr int kPitch = Storage::kSumPitch, kRowChunks = Config::kBlockN / kPack;
  for_each_pair<Config>(sums, [&](int i, int j, float first, float second) {
    store_pack(storage.sum + i * kPitch + j, Pack<float, 2>{first, second});
  });
  __syncthreads();
  for (int index = static_cast<int>(threadIdx.x); index < Config::kBlockM * kRowChunks; index += kThreads) {
    const int i = index / kRowChunks, j = index % kRowChunks * kPack;
    const auto low = load_pack<4>(storage.sum + i * kPitch + j), high = load_pack<4>(storage.sum + i * kPitch + j + 4);
    float sum[kPack];
#pragma unroll
    for (int e = 0; e < kPack; ++e) sum[e] = e < 4 ? low.element[e % 4] : high.element[e % 4];
    finish_sums<Config::kBlockM == 64>(product, at, i, j, sum);
  }
}

}  // namespace drupe::cuda::conv
