// attention, backward. Two kernels walk the same tiles of logits, one block a tile of what it owns: queries give dq
// (over keys), keys give dk and dv (over the queries of every head that reads them, in order). With P = 2^(s - lse) and
// delta = rowsum(dy y), which a kernel of its own computes:
//   dS = P (dy v^T - delta)   dq = scale dS k   dk = scale dS^T q   dv = P^T dy
// Nothing is added atomically. Bytes: operands of the owned tile once, the others once per tile, mostly from L2.
#include <platform/launch.cuh>

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/attention/backward.cuh"
#include "cuda/attention/variants.cuh"
#include "cuda/tile/map.cuh"

namespace drupe::cuda {
namespace {

using fma_tile::kM;
using fma_tile::kRows;
using fma_tile::kSide;

// delta, and where it is given `shift`: lse in units of log 2, +infinity where a query sees nothing. A warp a row; rows
// beyond the query lengths are not read.
template <class T>
__global__ __launch_bounds__(kMapThreads) void attention_delta_kernel(AttentionBackwardArgs args, std::int64_t rows,
                                                                      Accumulator<T>* delta, Accumulator<T>* shift) {
  using A = Accumulator<T>;
  const AttentionArgs& f = args.forward;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (std::int64_t r = global_thread() / kWarp; r < rows; r += global_threads() / kWarp) {
    const std::int64_t i = r % f.Sq, h = r / f.Sq % f.Hq, b = r / f.Sq / f.Hq;
    A sum(0);
    if (i < (f.query_lengths ? f.query_lengths[b] : f.Sq)) {
      const T* const y = rows_of<const T>(f.y, b, h, f.Dv).data + i * f.y.row;
      const T* const dy = rows_of<const T>(args.dy, b, h, f.Dv).data + i * args.dy.row;
      for (std::int64_t d = lane; d < f.Dv; d += kWarp) sum += widen(y[d]) * widen(dy[d]);
    }
    sum = warp_reduce(sum, Sum{});
    if (lane == 0) delta[r] = sum;
    if (lane == 0 && shift) {
      const A lse = static_cast<const A*>(f.lse)[r];
      shift[r] = lse == -infinity<A>() ? infinity<A>() : static_cast<A>(kLog2E) * lse;
    }
  }
}

template <class T, int kChunks>
__global__ __launch_bounds__(fma_tile::kThreads, 2) void attention_dq_kernel(AttentionBackwardArgs args,
                                                                             const Accumulator<T>* delta,
                                                                             std::int64_t tiles, std::int64_t parts) {
  using A = Accumulator<T>;
  auto& storage = shared_storage<BackwardStorage<A>>();
  const AttentionArgs& f = args.forward;
  const Task task = task_of_block(tiles, parts, f.Hq);
  const std::int64_t query0 = task.tile * kRows<A>, column0 = task.part * kChunks * kSide;
  const Sight sight(f, task.batch);
  const Head<T> head(args, task.batch, task.head, delta);
  const Span queries = sight.counted_queries(query0, query0 + kRows<A>), keys = sight.keys_seen_by(queries);
  load_query_numbers<kRows<A>>(storage, head, query0, queries);

  A dq[kChunks][kM<A>][4] = {}, tile[kM<A>][4];
  for (std::int64_t key0 = keys.begin; key0 < keys.end; key0 += kSide) {
    fma_tile::multiply_over_width(tile, storage.tiles, head.q, query0, queries, head.k, key0, keys);
    finish_probabilities<false>(tile, storage, f, Mask(sight, query0, key0), head.bias_at(f, query0, key0));
    fma_tile::multiply_over_width(tile, storage.tiles, head.dy, query0, queries, head.v, key0, keys);
    finish_logit_gradients<false>(tile, storage);
    fma_tile::store_weights(storage.tiles, tile);
    fma_tile::multiply_over_rows(dq, storage.tiles, head.k, key0, keys, column0);
  }
  store_gradient(dq, static_cast<A>(f.scale), rows_of<T>(args.dq, task.batch, task.head, f.D), query0, f.Sq, column0);
}

template <class T, int kChunks>
__global__ __launch_bounds__(fma_tile::kThreads, 2) void attention_dkv_kernel(AttentionBackwardArgs args,
                                                                              const Accumulator<T>* delta,
                                                                              std::int64_t tiles, std::int64_t parts) {
  using A = Accumulator<T>;
  auto& storage = shared_storage<BackwardStorage<A>>();
  const AttentionArgs& f = args.forward;
  const Task task = task_of_block(tiles, parts, f.Hkv);
  const std::int64_t key0 = task.tile * kRows<A>;
  const int column0 = task.part * kChunks * kSide;
  const Sight sight(f, task.batch);
  const Span keys = sight.counted_keys(key0, key0 + kRows<A>), queries = sight.queries_that_see(keys);
  const int group = static_cast<int>(f.Hq / f.Hkv);

  A dk[kChunks][kM<A>][4] = {}, dv[kChunks][kM<A>][4] = {};
#pragma unroll 1
  for (int g = 0; g < group; ++g) {
#pragma unroll 1
    for (std::int64_t query0 = queries.begin; query0 < queries.end; query0 += kSide) {
      const Head<T> head(args, task.batch, task.head * group + g, delta);
      A tile[kM<A>][4];
      const Mask mask(Sight(f, task.batch), query0, key0);  // what it reads takes no registers from tile to tile
      __syncthreads();
      load_query_numbers<kSide>(storage, head, query0, queries);
      fma_tile::multiply_over_width(tile, storage.tiles, head.k, key0, keys, head.q, query0, queries);
      finish_probabilities<true>(tile, storage, f, mask, head.bias_at(f, query0, key0));
      if (args.dv.data) fma_tile::multiply_over_rows(dv, storage.tiles, head.dy, query0, queries, column0);
      if (!args.dk.data) continue;
      fma_tile::multiply_over_width(tile, storage.tiles, head.v, key0, keys, head.dy, query0, queries);
      finish_logit_gradients<true>(tile, storage);
      fma_tile::store_weights(storage.tiles, tile);
      fma_tile::multiply_over_rows(dk, storage.tiles, head.q, query0, queries, column0);
    }
  }
  if (args.dk.data) {
    store_gradient(dk, static_cast<A>(f.scale), rows_of<T>(args.dk, task.batch, task.head, f.D), key0, f.Skv, column0);
  }
  if (args.dv.data) {
    store_gradient(dv, A(1), rows_of<T>(args.dv, task.batch, task.head, f.Dv), key0, f.Skv, column0);
  }
}

LaunchConfig config(std::int64_t blocks, std::size_t shared_bytes) {
  return {.grid = {static_cast<unsigned>(blocks)}, .block = {fma_tile::kThreads}, .shared_bytes = shared_bytes};
}

template <class T, int kChunks>
void run(const AttentionBackwardArgs& args, const Accumulator<T>* delta, Stream stream) {
  using A = Accumulator<T>;
  const AttentionArgs& f = args.forward;
  constexpr std::int64_t kWidth = kChunks * kSide;
  if (args.dq.data && f.B * f.Hq * f.Sq > 0) {
    const std::int64_t tiles = ceil_div(f.Sq, kRows<A>), parts = ceil_div(f.D, kWidth);
    launch<attention_dq_kernel<T, kChunks>>(config(f.B * f.Hq * parts * tiles, sizeof(BackwardStorage<A>)), stream,
                                            args, delta, tiles, parts);
  }
  // In 16 bits, whose heads are wide here, the sums of two parts would not fit beside the wider loads.
  constexpr int kKeyChunks = sizeof(T) == 2 ? 1 : kChunks;
  if ((args.dk.data || args.dv.data) && f.B * f.Hkv * f.Skv > 0) {
    const std::int64_t tiles = ceil_div(f.Skv, kRows<A>), parts = ceil_div(std::max(f.D, f.Dv), kKeyChunks * kSide);
    launch<attention_dkv_kernel<T, kKeyChunks>>(config(f.B * f.Hkv * parts * tiles, sizeof(BackwardStorage<A>)), stream,
                                                args, delta, tiles, parts);
  }
}

}  // namespace

void attention_backward(const AttentionBackwardArgs& args, Stream stream) {
  const AttentionArgs& f = args.forward;
  const bool tensor_cores = suits_mma(f);
  dispatch_float(f.dtype, [&]<class T>() {
    using A = Accumulator<T>;
    const std::int64_t rows = f.B * f.Hq * f.Sq;
    const auto memory = allocate(static_cast<std::size_t>(2 * rows) * sizeof(A), {DeviceType::cuda, stream.device});
    A* const delta = static_cast<A*>(memory.get());
    A* const shift = tensor_cores ? delta + rows : nullptr;
    if (rows > 0) {
      launch<attention_delta_kernel<T>>({.grid = {blocks_for(rows * kWarp)}, .block = {kMapThreads}}, stream, args,
                                        rows, delta, shift);
    }
    if constexpr (sizeof(T) == 2) {
      if (tensor_cores) {
        attention_backward_mma(args, shift, delta, stream);
      } else {
        run<T, fma_tile::kMostChunks<T>>(args, delta, stream);
      }
    } else if constexpr (fma_tile::kMostChunks<T> == 1) {
      run<T, 1>(args, delta, stream);
    } else {
      std::max(f.D, f.Dv) <= kSide ? run<T, 1>(args, delta, stream) : run<T, 2>(args, delta, stream);
    }
    if (args.dbias) attention_bias_gradient(args, delta, stream);
  });
}

}  // namespace drupe::cuda
