// attention, forward, for float16 and bfloat16 with head dimensions up to 256, on the tensor cores of sm_80 and later
// (Dao 2023). A block owns 128 queries of one head, a warp 16 or 32 of them, whose logits, probabilities and outputs
// never leave its registers: P is the left operand of P V as it stands. Tiles of K and V come through a ring of three
// buffers. Bytes: q and y once; k and v once per 128 queries, mostly from
// L2.
#include <platform/launch.cuh>

#include "core/cuda.h"
#include "cuda/attention/mma.cuh"
#include "cuda/attention/softmax.cuh"
#include "cuda/attention/variants.cuh"
#include "cuda/tile/vec.cuh"
#include "ops/copy.h"

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
  static constexpr int kKeys = kWidth == 192 || kWidth <= 64 ? 64 : 32;
  using Logits = WarpTile<kWarpRows, kKeys>;
  using Output = WarpTile<kWarpRows, kWidth>;

  struct Storage {
    OperandTile<T, kQueries, kWidth> q;
    OperandTile<T, kKeys, kWidth> ring[3];
  };
};

// Products become logits in `unit`s, or whole ones where there is a bias or the scale is not positive; -infinity where
// a query does not see a key. `row0` is the warp's first in the block's tile.
template <class C>
__device__ __forceinline__ void finish_logits(typename C::Logits& logits, const AttentionArgs& args, const Mask& mask,
                                              const typename C::T* bias, int row0, bool whole) {
  using Logits = typename C::Logits;
  const bool open = mask.is_open(C::kQueries, C::kKeys);
  if (open && !whole) return;
  // All but what is the lane's is the same constant in every lane: it takes no registers.
  const int query = row0 + Logits::row_of(0, 0), key = Logits::col_of(0, 0);
  const Mask lane = mask.from(query, key);
  if (whole)
    scale_and_add_bias<false>(logits, args, lane, bias ? bias + query * args.bias_row + key * args.bias_col : nullptr);
  if (open) return;
#pragma unroll
  for (int i = 0; i < Logits::kRowBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < Logits::kColBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (!lane.sees(16 * i + e / 2 * 8, 8 * j + e % 2)) logits.d[i][j][e] = -infinity<float>();
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
__global__ __launch_bounds__(C::kThreads, 256 / C::kThreads) void attention_mma_kernel(AttentionArgs args,
                                                                                       std::int64_t tiles) {
  using T = typename C::T;
  auto& storage = shared_storage<typename C::Storage>();
  const Task task = task_of_block(tiles, 1, args.Hq);
  const std::int64_t query0 = task.tile * C::kQueries, kv_head = task.head / (args.Hq / args.Hkv);
  const Sight sight(args, task.batch);
  const Span queries = sight.counted_queries(query0, query0 + C::kQueries), keys = sight.keys_seen_by(queries);
  auto k = rows_of<const T>(args.k, task.batch, kv_head, args.D).from(keys.begin);
  auto v = rows_of<const T>(args.v, task.batch, kv_head, args.Dv).from(keys.begin);
  const T* bias = static_cast<const T*>(args.bias);
  if (bias) {
    bias +=
        task.batch * args.bias_batch + task.head * args.bias_head + query0 * args.bias_row + keys.begin * args.bias_col;
  }
  const float factor = static_cast<float>(args.scale * kLog2E);
  const bool whole = bias != nullptr || !(factor > 0.0f);
  const int row0 = static_cast<int>(threadIdx.x) / 32 * C::kWarpRows;
  const bool busy = query0 + row0 < queries.end;

  typename C::Output output;
  output.fill(0.0f);
  Running<C::kRowBlocks> running;
  running.start(whole ? 1.0f : factor);
  // Tiles of K and V take turns in the ring: while one is used, the next is there or on its way.
  int left = static_cast<int>(keys.empty() ? 0 : keys.end - keys.begin), stage = 0;
  if (left > 0) {
    const auto q = rows_of<const T>(args.q, task.batch, task.head, args.D).from(query0);
    storage.q.template load<C::kThreads>(q, static_cast<int>(queries.end - query0));
    storage.ring[0].template load<C::kThreads>(k, left);
    cp_async_commit_group();
    storage.ring[1].template load<C::kThreads>(v, left);
    cp_async_commit_group();
  }
  Mask mask(sight, query0, keys.begin);
#pragma unroll 1
  for (; left > 0; left -= C::kKeys) {
    const int v_stage = stage == 2 ? 0 : stage + 1, next_stage = v_stage == 2 ? 0 : v_stage + 1;
    typename C::Logits logits;

    cp_async_wait_group<1>();
    __syncthreads();  // K is there, and nobody needs the last V
    if (left > C::kKeys) {
      k = k.from(C::kKeys);
      storage.ring[next_stage].template load<C::kThreads>(k, left - C::kKeys);
    }
    cp_async_commit_group();
    if (busy) {
      multiply_over_width(logits, storage.q, row0, storage.ring[stage]);
      finish_logits<C>(logits, args, mask, bias, row0, whole);
    }
    cp_async_wait_group<1>();
    __syncthreads();  // V is there, and nobody needs this K
    if (left > C::kKeys) {
      v = v.from(C::kKeys);
      storage.ring[stage].template load<C::kThreads>(v, left - C::kKeys);
    }
    cp_async_commit_group();
    if (busy) {
      soften(logits, running, output);
      multiply_over_rows(output, logits, storage.ring[v_stage], 0);
    }
    mask = mask.from(0, C::kKeys);
    if (bias) bias += C::kKeys * args.bias_col;
    stage = next_stage;
  }
  finish<C>(output, running, args, task, query0 + row0);
}

}  // namespace

Aligned align(const AttentionOperand& operand, std::int64_t B, std::int64_t H, std::int64_t S, std::int64_t width,
              Dtype dtype, Stream stream) {
  const auto is_whole = [](std::int64_t elements) { return elements % 8 == 0; };
  if (B * H * S * width == 0 || (is_pack_aligned(operand.data) && is_whole(operand.batch) && is_whole(operand.head) &&
                                 is_whole(operand.row) && is_whole(width))) {
    return {operand, nullptr};
  }
  const std::int64_t padded = ceil_div(width, 8) * 8;
  const auto bytes = static_cast<std::size_t>(B * H * S * padded) * size_of(dtype);
  const Device device{DeviceType::cuda, stream.device};
  Aligned result{{}, allocate(bytes, device)};
  result.operand = {result.memory.get(), H * S * padded, S * padded, padded};
  zero_bytes(result.memory.get(), bytes, device);
  copy({.src = operand.data,
        .dst = result.memory.get(),
        .shape = {B, H, S, width},
        .src_strides = {operand.batch, operand.head, operand.row, 1},
        .dst_strides = {result.operand.batch, result.operand.head, padded, 1},
        .src_dtype = dtype,
        .dst_dtype = dtype},
       stream);
  return result;
}

void attention_mma(const AttentionArgs& given, Stream stream) {
  AttentionArgs args = given;
  const AlignedInputs inputs(args, stream);
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
