// attention, forward, of few queries and many keys in float16 and bfloat16, on the tensor cores of sm_80 and later. A
// block owns 16 packed rows and a split of the keys (attention_decode.cu); its warps take turns at the tiles of keys,
// each with a ring of three tiles of its own, so that nobody waits for another before the end, where their sums are
// added up in order. Bytes: k and v once for each 16 rows.
#include <platform/launch.cuh>

#include "core/cuda.h"
#include "cuda/attention/decode.cuh"
#include "cuda/attention/mma.cuh"
#include "cuda/attention/softmax.cuh"
#include "cuda/attention/variants.cuh"
#include "cuda/tile/scan.cuh"

namespace drupe::cuda {
namespace {

template <class Element, int kHeadWidth>
struct Config {
  using T = Element;
  static constexpr int kWidth = kHeadWidth;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kRows = 16;
  static constexpr int kKeys = kWidth <= 128 ? 32 : 16;  // of a warp's tile
  static constexpr int kStep = kWarps * kKeys;
  static_assert(kSplitKeys % kStep == 0);
  using Logits = WarpTile<kRows, kKeys>;
  using Output = WarpTile<kRows, kWidth>;
  using Tile = OperandTile<T, kKeys, kWidth>;
  using Queries = OperandTile<T, kRows, kWidth>;

  struct Storage {
    Queries q;
    union {
      Tile ring[kWarps][3];
      alignas(16) float sums[kWarps][kRows][kWidth + 4];
    };
    float maximum[kWarps][kRows], sum[kWarps][kRows];
  };
};

// Begins to copy a warp's tile of keys; zeros from row `rows` and column from.width on.
template <class C>
__device__ __forceinline__ void load_keys(typename C::Tile& tile, const Rows<const typename C::T>& from, int rows) {
  using Tile = typename C::Tile;
  constexpr int kPass = 32 / Tile::kChunks;
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / Tile::kChunks, index = lane % Tile::kChunks;
  const int width = static_cast<int>(from.width) - index * 8;
  const typename C::T* line = from.data + row * from.stride + index * 8;
#pragma unroll
  for (int r = 0; r < C::kKeys; r += kPass) {
#pragma unroll
    for (int s = 0; s < C::kWidth / Tile::kSlab; ++s) {
      const bool valid = row + r < rows && s * Tile::kSlab < width;
      cp_async<16>(tile.slabs[s].chunk(row + r, index), valid ? line + s * Tile::kSlab : from.data, valid);
    }
    line += kPass * from.stride;
  }
}

// Begins to copy the packed rows from row0 on.
template <class C>
__device__ __forceinline__ void load_queries(typename C::Queries& tile, const AttentionArgs& args,
                                             const PackedRows& packed, const DecodeTask& task, int row0) {
  using Tile = typename C::Queries;
  constexpr int kChunks = C::kWidth / 8;
  const std::int64_t first_head = task.kv_head * (args.Hq / args.Hkv);
  const auto* q = static_cast<const typename C::T*>(args.q.data) + task.batch * args.q.batch + first_head * args.q.head;
  for (int i = static_cast<int>(threadIdx.x); i < C::kRows * kChunks; i += C::kThreads) {
    const int row = i / kChunks, column = i % kChunks * 8, head = packed.head(row0 + row);
    const int query = row0 + row - head * packed.queries;
    const bool valid = row0 + row < packed.rows && column < args.D;
    cp_async<16>(tile.slabs[column / Tile::kSlab].chunk(row, column % Tile::kSlab / 8),
                 valid ? q + head * args.q.head + query * args.q.row + column : q, valid);
  }
}

// A lane's two rows of a tile: what they are in the problem.
template <class T>
struct LaneRows {
  int query[2];
  const T* bias[2];  // at the lane's first column

  __device__ __forceinline__ LaneRows(const AttentionArgs& args, const PackedRows& packed, const DecodeTask& task,
                                      int row0, std::int64_t key) {
    const T* const first = static_cast<const T*>(args.bias);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = std::min(row0 + WarpTile<16, 16>::row_of(0, 2 * r), packed.rows - 1);  // the rest is not stored
      const std::int64_t head = task.kv_head * (args.Hq / args.Hkv) + packed.head(row);
      query[r] = packed.query(row);
      bias[r] = first ? first + task.batch * args.bias_batch + head * args.bias_head + query[r] * args.bias_row +
                            key * args.bias_col
                      : nullptr;
    }
  }
};

// Products become logits in units of log 2 where `whole`, or stay what they are; -infinity where a query does not see a
// key. The mask and the bias count from the tile's first key and the lane's first column on.
template <class C>
__device__ __forceinline__ void finish_logits(typename C::Logits& logits, const AttentionArgs& args,
                                              const LaneRows<typename C::T>& rows, const Mask& mask, bool whole) {
  const bool open = mask.is_open(static_cast<int>(args.Sq), C::kKeys);
  if (open && !whole) return;
  const float factor = static_cast<float>(args.scale * kLog2E);
  const int column = C::Logits::col_of(0, 0);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const typename C::T* bias = rows.bias[r];
#pragma unroll
    for (int n = 0; n < C::kKeys / 4; ++n) {
      const int right = n / 2 * 8 + n % 2;
      float& logit = logits.d[0][n / 2][2 * r + n % 2];
      const bool seen = open || mask.sees(rows.query[r], column + right);
      if (whole) logit *= factor;
      if (bias) {
        if (seen) logit += static_cast<float>(kLog2E) * widen(*bias);
        bias += (n % 2 == 0 ? 1 : 7) * args.bias_col;
      }
      if (!seen) logit = -infinity<float>();
    }
  }
}

// A warp's sums, for all to add up.
template <class C>
__device__ __forceinline__ void leave_sums(const typename C::Output& output, const Running<1>& running,
                                           typename C::Storage& storage) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = output.row_of(0, 2 * r);
    const float sum = warp_reduce<4>(running.sum[0][r], Sum{});
    if (thread % 4 == 0) {
      storage.maximum[warp][row] = running.maximum[0][r] * running.unit;
      storage.sum[warp][row] = sum;
    }
#pragma unroll
    for (int j = 0; j < C::kWidth / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) storage.sums[warp][row][output.col_of(j, e)] = output.d[0][j][2 * r + e];
    }
  }
}

// A warp adds up, in their order, what all warps have of a row: y and lse, or a split's share of them.
template <class C>
__device__ __forceinline__ void finish_row(int row, int packed_row, const AttentionArgs& args, const PackedRows& packed,
                                           const DecodeTask& task, const Partials<float>& partials,
                                           const typename C::Storage& storage) {
  using T = typename C::T;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float top = -infinity<float>(), total = 0.0f, weight[C::kWarps];
#pragma unroll
  for (int w = 0; w < C::kWarps; ++w) top = std::fmax(top, storage.maximum[w][row]);
  const float shift = top == -infinity<float>() ? 0.0f : top;
#pragma unroll
  for (int w = 0; w < C::kWarps; ++w) {
    weight[w] = ex2_approx(storage.maximum[w][row] - shift);
    total += weight[w] * storage.sum[w][row];
  }
  const std::int64_t first_head = task.kv_head * (args.Hq / args.Hkv), head = first_head + packed.head(packed_row);
  const std::int64_t place = (task.batch * args.Hq + first_head) * args.Sq + packed_row;
  T* const y = rows_of<T>(args.y, task.batch, head, args.Dv).from(packed.query(packed_row)).data;
  float* const sums = partials.sums ? partials.sums_of(task.split, place) : nullptr;
  const float factor = total == 0.0f ? 0.0f : 1.0f / total;
  for (int column = lane; column < args.Dv; column += 32) {
    float value = 0.0f;
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) value += weight[w] * storage.sums[w][row][column];
    if (sums) {
      sums[column] = value;
    } else {
      y[column] = narrow<T>(value * factor);
    }
  }
  if (lane != 0) return;
  if (sums) {
    partials.set_softmax(task.split, place, top, total);
  } else {
    static_cast<float*>(args.lse)[place] =
        total == 0.0f ? -infinity<float>() : static_cast<float>(kLn2) * top + std::log(total);
  }
}

template <class C>
__global__ __launch_bounds__(C::kThreads, 2) void attention_decode_mma_kernel(AttentionArgs args, std::int64_t tiles,
                                                                              Splits splits, Partials<float> partials) {
  using T = typename C::T;
  auto& storage = shared_storage<typename C::Storage>();
  const DecodeTask task = decode_task_of_block(tiles, 1, args.Hkv, args.B);
  const PackedRows packed(args);
  const int row0 = task.tile * C::kRows, warp = static_cast<int>(threadIdx.x) / 32;
  const Sight sight(args, task.batch);
  const Span seen = sight.keys_seen_by(sight.counted_queries(0, args.Sq)), own = splits.keys_of(task.split);
  const std::int64_t first = std::max(seen.begin, own.begin) + warp * C::kKeys;
  int left = static_cast<int>(std::max<std::int64_t>(0, std::min(seen.end, own.end) - first));
  auto k = rows_of<const T>(args.k, task.batch, task.kv_head, args.D).from(first);
  auto v = rows_of<const T>(args.v, task.batch, task.kv_head, args.Dv).from(first);
  auto& ring = storage.ring[warp];
  load_queries<C>(storage.q, args, packed, task, row0);
  cp_async_commit_group();
  if (left > 0) load_keys<C>(ring[0], k, left);
  cp_async_commit_group();
  if (left > 0) load_keys<C>(ring[1], v, left);
  cp_async_commit_group();

  const float factor = static_cast<float>(args.scale * kLog2E);
  const bool whole = args.bias != nullptr || !(factor > 0.0f);
  LaneRows<T> rows(args, packed, task, row0, first + C::Logits::col_of(0, 0));
  Mask mask(sight, 0, first);
  typename C::Output output;
  output.fill(0.0f);
  Running<1> running;
  running.start(whole ? 1.0f : factor);
  cp_async_wait_group<2>();
  __syncthreads();  // everybody's share of Q is there
  int stage = 0;
#pragma unroll 1
  for (; left > 0; left -= C::kStep) {
    const int v_stage = stage == 2 ? 0 : stage + 1, next_stage = v_stage == 2 ? 0 : v_stage + 1;
    typename C::Logits logits;
    cp_async_wait_group<1>();
    __syncwarp();  // K is there, and no lane needs the last V
    if (left > C::kStep) {
      k = k.from(C::kStep);
      load_keys<C>(ring[next_stage], k, left - C::kStep);
    }
    cp_async_commit_group();
    multiply_over_width(logits, storage.q, 0, ring[stage]);
    finish_logits<C>(logits, args, rows, mask, whole);
    cp_async_wait_group<1>();
    __syncwarp();  // V is there, and no lane needs this K
    if (left > C::kStep) {
      v = v.from(C::kStep);
      load_keys<C>(ring[stage], v, left - C::kStep);
    }
    cp_async_commit_group();
    soften(logits, running, output);
    multiply_over_rows(output, logits, ring[v_stage], 0);
    mask = mask.from(0, C::kStep);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (rows.bias[r]) rows.bias[r] += C::kStep * args.bias_col;
    }
    stage = next_stage;
  }
  cp_async_wait_group<0>();
  __syncthreads();  // nobody needs a ring any more
  leave_sums<C>(output, running, storage);
  __syncthreads();
  for (int row = warp; row < C::kRows && row0 + row < packed.rows; row += C::kWarps) {
    finish_row<C>(row, row0 + row, args, packed, task, partials, storage);
  }
}

}  // namespace

void attention_decode_mma(const AttentionArgs& given, Stream stream) {
  AttentionArgs args = given;
  const AlignedInputs inputs(args, stream);
  dispatch_width(args.dtype, std::max(args.D, args.Dv), [&]<class T, int kWidth>() {
    using C = Config<T, kWidth>;
    const std::int64_t tiles = ceil_div(args.Hq / args.Hkv * args.Sq, C::kRows);
    const std::int64_t blocks = args.B * args.Hkv * tiles, rows = args.B * args.Hq * args.Sq;
    const Splits splits = split_keys(args, blocks, multiprocessors(stream.device));
    const std::int64_t several = splits.count > 1 ? splits.count : 0;
    const auto sums = scratch<float>(stream, several * rows * std::max<std::int64_t>(1, args.Dv));
    const auto softmax = scratch<float>(stream, several * rows * 2);
    const Partials<float> partials{sums.get(), softmax.get(), rows, args.Dv};
    launch<attention_decode_mma_kernel<C>>({.grid = {static_cast<unsigned>(blocks * splits.count)},
                                            .block = {C::kThreads},
                                            .shared_bytes = sizeof(typename C::Storage)},
                                           stream, args, tiles, splits, partials);
    if (several != 0) join_splits<T>(args, partials, splits.count, stream);
  });
}

}  // namespace drupe::cuda
