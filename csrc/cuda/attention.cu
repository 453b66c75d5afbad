// attention, forward. A block owns a tile of queries of one head (and kChunks times 64 columns of y) and walks the
// blocks of keys that any of them sees: logits and e^(logit - max) in registers, P through shared memory, running
// maxima and sums rescale what earlier keys gave. Bytes: q and y once; k and v once per tile of queries, mostly from
// L2.
#include "ops/attention.h"

#include <platform/launch.cuh>

#include "core/dispatch.h"
#include "cuda/attention/fma.cuh"
#include "cuda/attention/variants.cuh"
#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {
namespace {

using fma_tile::kM;
using fma_tile::kRows;
using fma_tile::kSide;
using fma_tile::Lane;
using fma_tile::Running;

// From products to logits; -infinity where a query does not see a key.
template <class T, class A>
__device__ __forceinline__ void finish_logits(A (&logits)[kM<A>][4], const AttentionArgs& args, const Mask& mask,
                                              const T* bias) {
  const Lane lane = Lane::here<A>();
  const A factor = static_cast<A>(args.scale * kLog2E);
  const bool open = mask.is_open(kRows<A>, kSide);
#pragma unroll
  for (int i = 0; i < kM<A>; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int query = lane.row + 2 * i, key = lane.column + 16 * j;
      A& logit = logits[i][j];
      if (!open && !mask.sees(query, key)) {
        logit = -infinity<A>();
        continue;
      }
      logit *= factor;
      if (bias) logit += static_cast<A>(kLog2E) * widen(bias[query * args.bias_row + key * args.bias_col]);
    }
  }
}

template <class T, int kChunks>
__global__ __launch_bounds__(fma_tile::kThreads, 2) void attention_kernel(AttentionArgs args, std::int64_t tiles,
                                                                          std::int64_t parts) {
  using A = Accumulator<T>;
  auto& storage = shared_storage<fma_tile::Storage<A>>();
  const Task task = task_of_block(tiles, parts, args.Hq);
  const std::int64_t b = task.batch, h = task.head, kv_head = h / (args.Hq / args.Hkv);
  const std::int64_t query0 = task.tile * kRows<A>, column0 = task.part * kChunks * kSide;
  const Sight sight(args, b);
  const Span queries = sight.counted_queries(query0, query0 + kRows<A>);
  const Span keys = sight.keys_seen_by(queries);
  const Rows<const T> q = rows_of<const T>(args.q, b, h, args.D), k = rows_of<const T>(args.k, b, kv_head, args.D),
                      v = rows_of<const T>(args.v, b, kv_head, args.Dv);
  const T* bias = static_cast<const T*>(args.bias);
  if (bias) bias += b * args.bias_batch + h * args.bias_head + query0 * args.bias_row;

  Running<A> running;
  A output[kChunks][kM<A>][4] = {}, shrink[kM<A>];
  running.start();
  for (std::int64_t key0 = keys.begin; key0 < keys.end; key0 += kSide) {
    A logits[kM<A>][4];
    fma_tile::multiply_over_width(logits, storage, q, query0, queries, k, key0, keys);
    finish_logits(logits, args, Mask(sight, query0, key0), bias ? bias + key0 * args.bias_col : nullptr);
    soften(logits, running, shrink);
    fma_tile::shrink_sums(output, shrink);
    fma_tile::store_weights(storage, logits);
    fma_tile::multiply_over_rows(output, storage, v, key0, keys, column0);
  }

  const Lane lane = Lane::here<A>();
#pragma unroll
  for (int i = 0; i < kM<A>; ++i) {
    const A sum = warp_reduce<16>(running.sum[i], Sum{});
    const std::int64_t row = query0 + lane.row + 2 * i;
    shrink[i] = sum == A(0) ? A(0) : A(1) / sum;
    if (task.part == 0 && lane.column == 0 && row < args.Sq) {
      static_cast<A*>(args.lse)[(b * args.Hq + h) * args.Sq + row] =
          sum == A(0) ? -infinity<A>() : static_cast<A>(kLn2) * running.maximum[i] + std::log(sum);
    }
  }
  fma_tile::store_sums(output, shrink, rows_of<T>(args.y, b, h, args.Dv), query0, args.Sq, column0);
}

template <class T, int kChunks>
void attend(const AttentionArgs& args, Stream stream) {
  using A = Accumulator<T>;
  const std::int64_t tiles = ceil_div(args.Sq, kRows<A>);
  const std::int64_t parts = std::max<std::int64_t>(1, ceil_div(args.Dv, kChunks * kSide));
  launch<attention_kernel<T, kChunks>>({.grid = {static_cast<unsigned>(args.B * args.Hq * parts * tiles)},
                                        .block = {fma_tile::kThreads},
                                        .shared_bytes = sizeof(fma_tile::Storage<A>)},
                                       stream, args, tiles, parts);
}

}  // namespace

void attention(const AttentionArgs& args, Stream stream) {
  if (args.B * args.Hq * args.Sq == 0) return;
  if (suits_decode(args)) return attention_decode(args, stream);
  if (suits_mma(args)) return attention_mma(args, stream);
  dispatch_float(args.dtype, [&]<class T>() {
    if constexpr (std::is_same_v<T, float>) {
      if (args.Dv <= kSide) return attend<T, 1>(args, stream);
    }
    attend<T, fma_tile::kMostChunks<T>>(args, stream);
  });
}

}  // namespace drupe::cuda
