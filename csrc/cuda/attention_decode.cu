// attention, forward, of few queries and many keys (Dao et al. 2023, "Flash-Decoding"): the keys are cut into splits
// over the blocks that would be idle, and the heads that share keys are the rows of one tile. A block owns a tile of
// rows and a split, walks its keys as attention.cu does, and leaves sums in scratch; a warp for each row joins them in
// order. Bytes: k and v once for each tile of rows; the sums of each split twice.
#include <memory>
#include <platform/launch.cuh>

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/attention/decode.cuh"
#include "cuda/attention/fma.cuh"
#include "cuda/attention/variants.cuh"
#include "cuda/tile/map.cuh"
#include "cuda/tile/scan.cuh"
#include "ops/copy.h"

namespace drupe::cuda {
namespace {

using fma_tile::kM;
using fma_tile::kRows;
using fma_tile::kSide;
using fma_tile::Lane;

static_assert(choose_splits(1, 100, 132) == 1);
static_assert(choose_splits(1, 512, 132) == 2);
static_assert(choose_splits(8, 8192, 132) == 32);    // a batch of one: one wave of short splits
static_assert(choose_splits(8, 131072, 132) == 33);  // 264 blocks at once
static_assert(choose_splits(264, 8192, 132) == 1);   // no multiprocessor is idle
static_assert(choose_splits(1000000, 8192, 132) == 1);
static_assert(choose_splits(1, 1 << 20, 132) == 128);
static_assert(choose_splits(300, 8192, 132) == 7);  // eight full waves rather than two, one nearly empty

// From products to logits; -infinity where a row's query does not see a key.
template <class T, class A>
__device__ __forceinline__ void finish_logits(A (&logits)[kM<A>][4], const AttentionArgs& args,
                                              const PackedRows& packed, int row0, const Mask& mask, const T* bias) {
  const Lane lane = Lane::here<A>();
  const A factor = static_cast<A>(args.scale * kLog2E);
#pragma unroll
  for (int i = 0; i < kM<A>; ++i) {
    const int row = row0 + lane.row + 2 * i;
    if (row >= packed.rows) break;  // what they have is never stored
    const int head = packed.head(row), query = row - head * packed.queries;
    const T* line = bias ? bias + head * args.bias_head + query * args.bias_row : nullptr;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = lane.column + 16 * j;
      A& logit = logits[i][j];
      if (!mask.sees(query, key)) {
        logit = -infinity<A>();
        continue;
      }
      logit *= factor;
      if (line) logit += static_cast<A>(kLog2E) * widen(line[key * args.bias_col]);
    }
  }
}

// q's rows of a head of keys follow each other at q.row.
template <class T, int kChunks>
__global__ __launch_bounds__(fma_tile::kThreads, 2) void attention_decode_kernel(AttentionArgs args, std::int64_t tiles,
                                                                                 std::int64_t parts, Splits splits,
                                                                                 Partials<Accumulator<T>> partials) {
  using A = Accumulator<T>;
  auto& storage = shared_storage<fma_tile::Storage<A>>();
  const DecodeTask task = decode_task_of_block(tiles, parts, args.Hkv, args.B);
  const PackedRows packed(args);
  const std::int64_t b = task.batch, first_head = task.kv_head * (args.Hq / args.Hkv);
  const int row0 = task.tile * kRows<A>, column0 = task.part * kChunks * kSide;
  const Sight sight(args, b);
  const Span rows{row0, std::min(row0 + kRows<A>, packed.rows)}, own = splits.keys_of(task.split);
  Span keys = sight.keys_seen_by(sight.counted_queries(0, args.Sq));
  keys = {std::max(keys.begin, own.begin), std::min(keys.end, own.end)};
  const Rows<const T> q = rows_of<const T>(args.q, b, first_head, args.D),
                      k = rows_of<const T>(args.k, b, task.kv_head, args.D),
                      v = rows_of<const T>(args.v, b, task.kv_head, args.Dv);
  const T* bias = static_cast<const T*>(args.bias);
  if (bias) bias += b * args.bias_batch + first_head * args.bias_head;

  fma_tile::Running<A> running;
  A output[kChunks][kM<A>][4] = {}, shrink[kM<A>];
  running.start();
  for (std::int64_t key0 = keys.begin; key0 < keys.end; key0 += kSide) {
    A logits[kM<A>][4];
    fma_tile::multiply_over_width(logits, storage, q, row0, rows, k, key0, keys);
    finish_logits(logits, args, packed, row0, Mask(sight, 0, key0), bias ? bias + key0 * args.bias_col : nullptr);
    fma_tile::soften(logits, running, shrink);
    fma_tile::shrink_sums(output, shrink);
    fma_tile::store_weights(storage, logits);
    fma_tile::multiply_over_rows(output, storage, v, key0, keys, column0);
  }

  const Lane lane = Lane::here<A>();
  const std::int64_t first_row = (b * args.Hq + first_head) * args.Sq;
#pragma unroll
  for (int i = 0; i < kM<A>; ++i) {
    const A sum = warp_reduce<16>(running.sum[i], Sum{});
    const int row = row0 + lane.row + 2 * i;
    shrink[i] = A(1);
    if (task.part == 0 && lane.column == 0 && row < packed.rows) {
      partials.set_softmax(task.split, first_row + row, running.maximum[i], sum);
    }
  }
  const Rows<A> to{partials.sums_of(task.split, first_row), args.Dv, args.Dv, false};
  fma_tile::store_sums(output, shrink, to, row0, packed.rows, column0);
}

constexpr int kJoinThreads = 128;

template <class T>
__global__ __launch_bounds__(kJoinThreads) void attention_join_kernel(AttentionArgs args, int splits,
                                                                      Partials<Accumulator<T>> partials) {
  using A = Accumulator<T>;
  constexpr int kColumns = 4;  // of a lane, 32 apart
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = global_thread() / kWarp;
  if (row >= partials.rows) return;  // the whole warp
  A* const softmax = partials.softmax + 2 * row;
  const std::int64_t step = 2 * partials.rows;
  A top = -infinity<A>(), sum = A(0);
  for (int s = lane; s < splits; s += kWarp) top = std::fmax(top, softmax[s * step]);
  top = warp_reduce(top, Maximum{});
  const A shift = top == -infinity<A>() ? A(0) : top;
  for (int s = lane; s < splits; s += kWarp) sum += softmax[s * step + 1] * std::exp2(softmax[s * step] - shift);
  sum = warp_reduce(sum, Sum{});
  const A factor = sum == A(0) ? A(0) : A(1) / sum;
  if (lane == 0) {
    static_cast<A*>(args.lse)[row] = sum == A(0) ? -infinity<A>() : static_cast<A>(kLn2) * top + std::log(sum);
  }
  for (int s = lane; s < splits; s += kWarp) softmax[s * step] = factor * std::exp2(softmax[s * step] - shift);
  __syncwarp();  // each maximum has become what its split's sums are due
  const std::int64_t i = row % args.Sq, head = row / args.Sq;
  T* const y = rows_of<T>(args.y, head / args.Hq, head % args.Hq, args.Dv).from(i).data;
  for (std::int64_t column0 = lane; column0 < args.Dv; column0 += kColumns * kWarp) {
    A total[kColumns] = {};
#pragma unroll 4
    for (int s = 0; s < splits; ++s) {
      const A weight = softmax[s * step];
      const A* const from = partials.sums_of(s, row) + column0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (column0 + c * kWarp < args.Dv) total[c] += weight * from[c * kWarp];
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (column0 + c * kWarp < args.Dv) y[column0 + c * kWarp] = narrow<T>(total[c]);
    }
  }
}

// q with one stride over the queries of all heads that share keys. `memory` must live until the kernel is launched.
std::shared_ptr<void> pack_queries(AttentionArgs& args, Stream stream) {
  if (args.Sq == 1) args.q.row = args.q.head;
  if (args.Sq == 1 || args.Hq == args.Hkv || args.q.head == args.Sq * args.q.row) return nullptr;
  const AttentionOperand from = args.q;
  const std::int64_t size = args.Sq * args.D;
  auto memory = allocate(static_cast<std::size_t>(args.B * args.Hq * size) * size_of(args.dtype),
                         {DeviceType::cuda, stream.device});
  args.q = {memory.get(), args.Hq * size, size, args.D};
  copy({.src = from.data,
        .dst = memory.get(),
        .shape = {args.B, args.Hq, args.Sq, args.D},
        .src_strides = {from.batch, from.head, from.row, 1},
        .dst_strides = {args.q.batch, args.q.head, args.q.row, 1},
        .src_dtype = args.dtype,
        .dst_dtype = args.dtype},
       stream);
  return memory;
}

template <class T, int kChunks>
void decode(AttentionArgs args, Stream stream) {
  using A = Accumulator<T>;
  const std::shared_ptr<void> packed = pack_queries(args, stream);
  const std::int64_t tiles = ceil_div(args.Hq / args.Hkv * args.Sq, kRows<A>);
  const std::int64_t parts = std::max<std::int64_t>(1, ceil_div(args.Dv, kChunks * kSide));
  const std::int64_t blocks = args.B * args.Hkv * tiles * parts, rows = args.B * args.Hq * args.Sq;
  const Splits splits = split_keys(args, blocks, multiprocessors(stream.device));
  const auto sums = scratch<A>(stream, splits.count * rows * args.Dv),
             softmax = scratch<A>(stream, splits.count * rows * 2);
  const Partials<A> partials{sums.get(), softmax.get(), rows, args.Dv};
  launch<attention_decode_kernel<T, kChunks>>({.grid = {static_cast<unsigned>(blocks * splits.count)},
                                               .block = {fma_tile::kThreads},
                                               .shared_bytes = sizeof(fma_tile::Storage<A>)},
                                              stream, args, tiles, parts, splits, partials);
  join_splits<T>(args, partials, splits.count, stream);
}

}  // namespace

template <class T>
void join_splits(const AttentionArgs& args, const Partials<Accumulator<T>>& partials, int splits, Stream stream) {
  launch<attention_join_kernel<T>>(
      {.grid = {blocks_for(partials.rows, 1, kJoinThreads / kWarp)}, .block = {kJoinThreads}}, stream, args, splits,
      partials);
}
template void join_splits<Float16>(const AttentionArgs&, const Partials<float>&, int, Stream);
template void join_splits<BFloat16>(const AttentionArgs&, const Partials<float>&, int, Stream);

void attention_decode(const AttentionArgs& args, Stream stream) {
  if (suits_mma(args)) return attention_decode_mma(args, stream);
  dispatch_float(args.dtype, [&]<class T>() { decode<T, fma_tile::kMostChunks<T>>(args, stream); });
}

}  // namespace drupe::cuda
