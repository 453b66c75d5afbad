// attention, the gradient of the bias. A block owns a tile of dbias and adds dS over a part of what the bias was
// broadcast to (batches, heads, and tiles of queries or keys); where dbias is small there are many parts, whose sums a
// second kernel adds in order. Bytes: q, k, v and dy once per tile of logits, mostly from L2; dbias once.
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

constexpr std::int64_t kBlocks = 512;  // wanted, about

// Along one dimension of the logits, in tiles: `own` that dbias has, `sum` that are added up in each.
struct Axis {
  std::int64_t own, sum;
};
constexpr Axis axis_of(std::int64_t extent, std::int64_t full, std::int64_t tile = 1) {
  const std::int64_t tiles = ceil_div(full, tile);
  return extent == 1 ? Axis{1, tiles} : Axis{tiles, 1};
}

struct Plan {
  Axis batch, head, query, key;
  std::int64_t parts, size;  // size: of dbias
};
Plan plan_of(const AttentionBackwardArgs& args, std::int64_t rows) {
  const AttentionArgs& f = args.forward;
  const std::int64_t* shape = args.bias_shape;
  Plan plan{axis_of(shape[0], f.B),
            axis_of(shape[1], f.Hq),
            axis_of(shape[2], f.Sq, rows),
            axis_of(shape[3], f.Skv, kSide),
            1,
            shape[0] * shape[1] * shape[2] * shape[3]};
  const std::int64_t tasks = plan.batch.own * plan.head.own * plan.query.own * plan.key.own;
  const std::int64_t sums = plan.batch.sum * plan.head.sum * plan.query.sum * plan.key.sum;
  if (tasks > 0) plan.parts = std::max<std::int64_t>(1, std::min(sums, kBlocks / tasks));
  return plan;
}

// Adds dS of one tile; the columns of sum are keys.
template <class T, class A>
__device__ __forceinline__ void add_tile(A (&sum)[kM<A>][4], BackwardStorage<A>& storage,
                                         const AttentionBackwardArgs& args, const Head<T>& head, const Sight& sight,
                                         std::int64_t query0, std::int64_t key0) {
  const Span queries = sight.counted_queries(query0, query0 + kRows<A>), seen = sight.keys_seen_by(queries);
  const Span keys{std::max(seen.begin, key0), std::min(seen.end, key0 + kSide)};
  if (keys.empty()) return;
  A tile[kM<A>][4];
  __syncthreads();
  load_query_numbers<kRows<A>>(storage, head, query0, queries);
  fma_tile::multiply_over_width(tile, storage.tiles, head.q, query0, queries, head.k, key0, keys);
  finish_probabilities<false>(tile, storage, args.forward, Mask(sight, query0, key0),
                              head.bias_at(args.forward, query0, key0));
  fma_tile::multiply_over_width(tile, storage.tiles, head.dy, query0, queries, head.v, key0, keys);
  finish_logit_gradients<false>(tile, storage);
#pragma unroll
  for (int i = 0; i < kM<A>; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[i][j] += tile[i][j];
  }
}

// Adds the tile's rows, or its columns, where dbias has but one.
template <class A>
__device__ __forceinline__ void reduce_tile(fma_tile::Storage<A>& storage, bool over_rows, bool over_columns) {
  const int i = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (over_rows && i < kSide) {
    for (int r = 1; r < kRows<A>; ++r) storage.weights[0][i] += storage.weights[r][i];
  }
  __syncthreads();
  if (over_columns && i < (over_rows ? 1 : kRows<A>)) {
    for (int c = 1; c < kSide; ++c) storage.weights[i][0] += storage.weights[i][c];
  }
  __syncthreads();
}

template <class T>
__global__ __launch_bounds__(fma_tile::kThreads, 2) void attention_dbias_kernel(AttentionBackwardArgs args,
                                                                                const Accumulator<T>* delta, Plan plan,
                                                                                Accumulator<T>* partial) {
  using A = Accumulator<T>;
  auto& storage = shared_storage<BackwardStorage<A>>();
  const std::int64_t* shape = args.bias_shape;
  std::int64_t rest = blockIdx.x;
  const std::int64_t key_tile = rest % plan.key.own;
  const std::int64_t query_tile = (rest /= plan.key.own) % plan.query.own;
  const std::int64_t own_head = (rest /= plan.query.own) % plan.head.own;
  const std::int64_t own_batch = (rest /= plan.head.own) % plan.batch.own;
  const std::int64_t part = rest / plan.batch.own;
  const std::int64_t sums = plan.batch.sum * plan.head.sum * plan.query.sum * plan.key.sum;

  A sum[kM<A>][4] = {};
  for (std::int64_t s = sums * part / plan.parts; s < sums * (part + 1) / plan.parts; ++s) {
    std::int64_t outer = s;
    const std::int64_t key = key_tile + outer % plan.key.sum;
    const std::int64_t query = query_tile + (outer /= plan.key.sum) % plan.query.sum;
    const std::int64_t h = own_head + (outer /= plan.query.sum) % plan.head.sum;
    const std::int64_t b = own_batch + outer / plan.head.sum;
    add_tile(sum, storage, args, Head<T>(args, b, h, delta), Sight(args.forward, b), query * kRows<A>, key * kSide);
  }
  __syncthreads();
  fma_tile::store_weights(storage.tiles, sum);
  reduce_tile(storage.tiles, shape[2] == 1, shape[3] == 1);
  const std::int64_t row0 = query_tile * kRows<A>, column0 = key_tile * kSide;
  for (int i = static_cast<int>(threadIdx.x); i < kRows<A> * kSide; i += fma_tile::kThreads) {
    const std::int64_t row = row0 + i / kSide, column = column0 + i % kSide;
    if (row >= shape[2] || column >= shape[3]) continue;
    const std::int64_t at = ((own_batch * shape[1] + own_head) * shape[2] + row) * shape[3] + column;
    const A value = storage.tiles.weights[i / kSide][i % kSide];
    if (partial) {
      partial[part * plan.size + at] = value;
    } else {
      static_cast<T*>(args.dbias)[at] = narrow<T>(value);
    }
  }
}

template <class T>
__global__ __launch_bounds__(kMapThreads) void attention_dbias_parts_kernel(const Accumulator<T>* partial,
                                                                            std::int64_t parts, std::int64_t size,
                                                                            T* dbias) {
  for (std::int64_t i = global_thread(); i < size; i += global_threads()) {
    Accumulator<T> sum(0);
    for (std::int64_t part = 0; part < parts; ++part) sum += partial[part * size + i];
    dbias[i] = narrow<T>(sum);
  }
}

}  // namespace

void attention_bias_gradient(const AttentionBackwardArgs& args, const void* delta, Stream stream) {
  dispatch_float(args.forward.dtype, [&]<class T>() {
    using A = Accumulator<T>;
    const Plan plan = plan_of(args, kRows<A>);
    const std::int64_t blocks = plan.batch.own * plan.head.own * plan.query.own * plan.key.own * plan.parts;
    if (blocks == 0 || plan.size == 0) return;
    std::shared_ptr<void> memory;
    if (plan.parts > 1) {
      memory =
          allocate(static_cast<std::size_t>(plan.parts * plan.size) * sizeof(A), {DeviceType::cuda, stream.device});
    }
    A* const partial = static_cast<A*>(memory.get());
    launch<attention_dbias_kernel<T>>({.grid = {static_cast<unsigned>(blocks)},
                                       .block = {fma_tile::kThreads},
                                       .shared_bytes = sizeof(BackwardStorage<A>)},
                                      stream, args, static_cast<const A*>(delta), plan, partial);
    if (partial) {
      launch<attention_dbias_parts_kernel<T>>({.grid = {blocks_for(plan.size)}, .block = {kMapThreads}}, stream,
                                              static_cast<const A*>(partial), plan.parts, plan.size,
                                              static_cast<T*>(args.dbias));
    }
  });
}

}  // namespace drupe::cuda
