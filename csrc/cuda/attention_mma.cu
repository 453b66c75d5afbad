// attention, forward, for float16 and bfloat16 with head dimensions up to 256, on the tensor cores of sm_80 and later
// (Dao 2023). A block owns 128 queries of one head, a warp 16 or 32 of them, whose logits, probabilities and outputs
// never leave its registers: P is the left operand of P V as it stands. K and V have a buffer each: V arrives while
// Q K^T is computed, the next K during softmax and P V. Bytes: q and y once; k and v once per 128 queries, mostly from
// L2.
#include <platform/launch.cuh>

#include "cuda/attention/mma.cuh"
#include "cuda/attention/variants.cuh"

namespace drupe::cuda {
namespace {

template <class Element, int kHeadWidth>
struct Config {
  using T = Element;
  static constexpr int kWidth = kHeadWidth;
  static constexpr int kRowBlocks = kWidth <= 128 ? 2 : 1;  // of 16, of a warp
  static constexpr int kWarps = kWidth <= 128 ? 4 : 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpRows = 16 * kRowBlocks;
  static constexpr int kQueries = kWarps * kWarpRows;
  static constexpr int kKeys = kWidth <= 192 ? 64 : 32;
  using Logits = WarpTile<kWarpRows, kKeys>;
  using Output = WarpTile<kWarpRows, kWidth>;

  struct Storage {
    OperandTile<T, kQueries, kWidth> q;
    OperandTile<T, kKeys, kWidth> k, v;
  };
};

// The running softmax of a lane's rows. 2^(unit x) is e^logit for the x that are kept.
template <int kRowBlocks>
struct Running {
  float maximum[kRowBlocks][2], sum[kRowBlocks][2];
  float unit;
};

// Products become logits in `unit`s, or whole ones where there is a bias or the scale is not positive; -infinity where
// a query does not see a key. `row0` is the warp's first in the block's tile.
template <class C>
__device__ __forceinline__ void finish_logits(typename C::Logits& logits, const AttentionArgs& args, const Mask& mask,
                                              const typename C::T* bias, int row0, bool whole) {
  using Logits = typename C::Logits;
  const float factor = static_cast<float>(args.scale * kLog2E);
  const bool open = mask.is_open(C::kQueries, C::kKeys);
  if (open && !whole) return;
#pragma unroll
  for (int i = 0; i < Logits::kRowBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < Logits::kColBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int query = row0 + Logits::row_of(i, e), key = Logits::col_of(j, e);
        float& logit = logits.d[i][j][e];
        if (!open && !mask.sees(query, key)) {
          logit = -infinity<float>();
          continue;
        }
        if (whole) logit *= factor;
        if (bias) logit += static_cast<float>(kLog2E) * widen(bias[query * args.bias_row + key * args.bias_col]);
      }
    }
  }
}

// From logits to probabilities times 2^maximum; what earlier keys gave shrinks to the new maximum.
template <class C>
__device__ __forceinline__ void soften(typename C::Logits& logits, Running<C::kRowBlocks>& running,
                                       typename C::Output& output) {
#pragma unroll
  for (int i = 0; i < C::kRowBlocks; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = running.maximum[i][r];
#pragma unroll
      for (int j = 0; j < C::kKeys / 8; ++j) top = std::fmax(top, std::fmax(logits.d[i][j][2 * r], logits.d[i][j][2 * r + 1]));
      top = warp_reduce<4>(top, Maximum{});
      const float shift = top == -infinity<float>() ? 0.0f : top * running.unit;  // all masked so far: 2^-inf = 0
      const float shrink = ex2_approx(running.maximum[i][r] * running.unit - shift);
      float sum = running.sum[i][r] * shrink;
#pragma unroll
      for (int j = 0; j < C::kKeys / 8; ++j) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          logits.d[i][j][e] = ex2_approx(logits.d[i][j][e] * running.unit - shift);
          sum += logits.d[i][j][e];
        }
      }
      running.maximum[i][r] = top;
      running.sum[i][r] = sum;
#pragma unroll
      for (int j = 0; j < C::kWidth / 8; ++j) {
        output.d[i][j][2 * r] *= shrink;
        output.d[i][j][2 * r + 1] *= shrink;
      }
    }
  }
}

// y and lse of the warp's rows.
template <class C>
__device__ __forceinline__ void finish(const typename C::Output& output, const Running<C::kRowBlocks>& running,
                                       const AttentionArgs& args, const Task& task, std::int64_t row0) {
  float factor[C::kRowBlocks][2];
  float* const lse = static_cast<float*>(args.lse) + (task.batch * args.Hq + task.head) * args.Sq;
#pragma unroll
  for (int i = 0; i < C::kRowBlocks; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = warp_reduce<4>(running.sum[i][r], Sum{});
      factor[i][r] = sum == 0.0f ? 0.0f : 1.0f / sum;
      const std::int64_t row = row0 + output.row_of(i, 2 * r);
      if (row < args.Sq && threadIdx.x % 4 == 0) {
        lse[row] = sum == 0.0f ? -infinity<float>()
                               : static_cast<float>(kLn2) * running.maximum[i][r] * running.unit + std::log(sum);
      }
    }
  }
  store_rows(output, factor, rows_of<typename C::T>(args.y, task.batch, task.head, args.Dv), row0, args.Sq, 0);
}

template <class C>
__global__ __launch_bounds__(C::kThreads) void attention_mma_kernel(AttentionArgs args, std::int64_t tiles) {
  using T = typename C::T;
  auto& storage = shared_storage<typename C::Storage>();
  const Task task = task_of_block(tiles, 1, args.Hq);
  const std::int64_t query0 = task.tile * C::kQueries, kv_head = task.head / (args.Hq / args.Hkv);
  const Sight sight(args, task.batch);
  const Span queries = sight.counted_queries(query0, query0 + C::kQueries), keys = sight.keys_seen_by(queries);
  const auto k = rows_of<const T>(args.k, task.batch, kv_head, args.D);
  const auto v = rows_of<const T>(args.v, task.batch, kv_head, args.Dv);
  const T* bias = static_cast<const T*>(args.bias);
  if (bias) bias += task.batch * args.bias_batch + task.head * args.bias_head + query0 * args.bias_row;
  const float factor = static_cast<float>(args.scale * kLog2E);
  const bool whole = bias != nullptr || !(factor > 0.0f);
  const int row0 = static_cast<int>(threadIdx.x) / 32 * C::kWarpRows;
  const bool busy = query0 + row0 < queries.end;

  typename C::Output output;
  output.fill(0.0f);
  Running<C::kRowBlocks> running;
  running.unit = whole ? 1.0f : factor;
#pragma unroll
  for (int i = 0; i < C::kRowBlocks; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) running.maximum[i][r] = -infinity<float>(), running.sum[i][r] = 0.0f;
  }
  if (!keys.empty()) {
    storage.q.template load<C::kThreads>(rows_of<const T>(args.q, task.batch, task.head, args.D), query0, queries.end);
    storage.k.template load<C::kThreads>(k, keys.begin, keys.end);
    cp_async_commit_group();
  }
#pragma unroll 1
  for (std::int64_t key0 = keys.begin; key0 < keys.end; key0 += C::kKeys) {
    typename C::Logits logits;
    cp_async_wait_group<0>();
    __syncthreads();  // K is there, and nobody needs the last V
    storage.v.template load<C::kThreads>(v, key0, keys.end);
    cp_async_commit_group();
    if (busy) {
      multiply_over_width<T, C::kWidth>(logits, storage.q, row0, storage.k);
      finish_logits<C>(logits, args, Mask(sight, query0, key0), bias ? bias + key0 * args.bias_col : nullptr, row0,
                       whole);
    }
    cp_async_wait_group<0>();
    __syncthreads();  // V is there, and nobody needs this K
    if (key0 + C::kKeys < keys.end) storage.k.template load<C::kThreads>(k, key0 + C::kKeys, keys.end);
    cp_async_commit_group();
    if (busy) {
      soften<C>(logits, running, output);
      multiply_over_rows<T>(output, logits, storage.v, 0);
    }
  }
  finish<C>(output, running, args, task, query0 + row0);
}

}  // namespace

void attention_mma(const AttentionArgs& args, Stream stream) {
  dispatch_width(args.dtype, std::max(args.D, args.Dv), [&]<class T, int kWidth>() {
    using C = Config<T, kWidth>;
    const std::int64_t tiles = ceil_div(args.Sq, C::kQueries);
    launch<attention_mma_kernel<C>>({.grid = {static_cast<unsigned>(args.B * args.Hq * tiles)},
                                     .block = {C::kThreads},
                                     .shared_bytes = sizeof(typename C::Storage)},
                                    stream, args, tiles);
  });
}

}  // namespace drupe::cuda
