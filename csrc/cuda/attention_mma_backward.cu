// attention, backward, for float16 and bfloat16 with head dimensions up to 256, on the tensor cores of sm_80 and later.
// As by FMA, one kernel owns queries and gives dq, the other owns keys and gives dk and dv, over the queries of every
// head that reads them, in order. A block owns 64 rows, a warp 16 of them, against tiles of the others that stream by:
// it computes the logits with its own rows as rows, so that P and dS are left operands as they stand, in registers. Of
// wide heads a block sums a part of the columns. Bytes: the owned operands once, the others once per 64 rows owned,
// mostly from L2.
#include <platform/launch.cuh>

#include "cuda/attention/mma.cuh"
#include "cuda/attention/variants.cuh"

namespace drupe::cuda {
namespace {

template <class Element, int kHeadWidth>
struct Config {
  using T = Element;
  static constexpr int kWidth = kHeadWidth;
  static constexpr int kThreads = 128;
  static constexpr int kOwn = 64;
  static constexpr int kStream = kWidth <= 64 ? 64 : 32;
  static constexpr int kStages = kWidth <= 192 ? 2 : 1;
  static constexpr int kPart = kWidth <= 128 ? kWidth : kWidth / 2;  // columns of a gradient
  using Logits = WarpTile<16, kStream>;
  using Sums = WarpTile<16, kPart>;

  struct Stage {
    OperandTile<T, kStream, kWidth> first, second;  // q and dy, or k and v
    alignas(16) float shift[kStream], delta[kStream];
  };
  struct Storage {
    OperandTile<T, kOwn, kWidth> first, second;
    Stage stages[kStages];
  };
};

// Where a tile that streams by begins.
struct Position {
  std::int64_t head, row;

  __device__ __forceinline__ Position next(Span rows, int step) const {
    return row + step < rows.end ? Position{head, row + step} : Position{head + 1, rows.begin};
  }
};

struct Numbers {
  const float *shift, *delta;  // (B, Hq, Sq)
};

template <class C, bool kKeysOwn>
__device__ __forceinline__ void load_stage(typename C::Stage& stage, const AttentionBackwardArgs& args,
                                           const Numbers& numbers, std::int64_t b, Position at, std::int64_t end) {
  using T = typename C::T;
  const AttentionArgs& f = args.forward;
  const int rows = static_cast<int>(std::min<std::int64_t>(C::kStream, end - at.row));
  if constexpr (kKeysOwn) {
    stage.first.template load<C::kThreads>(rows_of<const T>(f.q, b, at.head, f.D).from(at.row), rows);
    stage.second.template load<C::kThreads>(rows_of<const T>(args.dy, b, at.head, f.Dv).from(at.row), rows);
    const int i = static_cast<int>(threadIdx.x);
    const std::int64_t row = (b * f.Hq + at.head) * f.Sq + at.row + i;
    if (i < C::kStream) {
      cp_async<4>(&stage.shift[i], i < rows ? numbers.shift + row : numbers.shift, i < rows);
      cp_async<4>(&stage.delta[i], i < rows ? numbers.delta + row : numbers.delta, i < rows);
    }
  } else {
    const std::int64_t kv_head = at.head / (f.Hq / f.Hkv);
    stage.first.template load<C::kThreads>(rows_of<const T>(f.k, b, kv_head, f.D).from(at.row), rows);
    stage.second.template load<C::kThreads>(rows_of<const T>(f.v, b, kv_head, f.Dv).from(at.row), rows);
  }
  cp_async_commit_group();
}

// From products q . k to P, given the mask from the lane's first query and key on.
template <class C, bool kKeysOwn>
__device__ __forceinline__ void finish_probabilities(typename C::Logits& p, const typename C::Stage& stage,
                                                     const float (&own_shift)[2], const Mask& mask, bool open,
                                                     float unit) {
  using Logits = typename C::Logits;
#pragma unroll
  for (int j = 0; j < Logits::kColBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int down = e / 2 * 8, right = 8 * j + e % 2;
      const bool seen = open || (kKeysOwn ? mask.sees(right, down) : mask.sees(down, right));
      const float shift = kKeysOwn ? stage.shift[Logits::col_of(j, e)] : own_shift[e / 2];
      p.d[0][j][e] = seen ? ex2_approx(p.d[0][j][e] * unit - shift) : 0.0f;
    }
  }
}

// From products dy . v to dS.
template <class C, bool kKeysOwn>
__device__ __forceinline__ void finish_logit_gradients(typename C::Logits& ds, const typename C::Logits& p,
                                                       const typename C::Stage& stage, const float (&own_delta)[2]) {
  using Logits = typename C::Logits;
#pragma unroll
  for (int j = 0; j < Logits::kColBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float delta = kKeysOwn ? stage.delta[Logits::col_of(j, e)] : own_delta[e / 2];
      ds.d[0][j][e] = p.d[0][j][e] * (ds.d[0][j][e] - delta);
    }
  }
}

template <class C, bool kKeysOwn>
__global__ __launch_bounds__(C::kThreads,
                             256 / C::kThreads) void attention_backward_mma_kernel(AttentionBackwardArgs args,
                                                                                   Numbers numbers, std::int64_t tiles,
                                                                                   std::int64_t parts) {
  using T = typename C::T;
  auto& storage = shared_storage<typename C::Storage>();
  const AttentionArgs& f = args.forward;
  const std::int64_t group = f.Hq / f.Hkv;
  const Task task = task_of_block(tiles, parts, kKeysOwn ? f.Hkv : f.Hq);
  const std::int64_t b = task.batch, own0 = task.tile * C::kOwn;
  const int column0 = static_cast<int>(task.part) * C::kPart;
  const Sight sight(f, b);
  const Span own = kKeysOwn ? sight.counted_keys(own0, own0 + C::kOwn) : sight.counted_queries(own0, own0 + C::kOwn);
  const Span others = kKeysOwn ? sight.queries_that_see(own) : sight.keys_seen_by(own);
  const int row0 = static_cast<int>(threadIdx.x) / 32 * 16, row = row0 + C::Logits::row_of(0, 0);
  const bool busy = own0 + row0 < own.end;
  const float factor = static_cast<float>(f.scale * kLog2E);

  float own_shift[2] = {}, own_delta[2] = {};
  Position at{kKeysOwn ? task.head * group : task.head, others.begin};
  const std::int64_t last_head = kKeysOwn ? at.head + group : at.head + 1;
  typename C::Sums sum;                           // dq, or dk
  WarpTile<16, kKeysOwn ? C::kPart : 16> dv_sum;  // with kKeysOwn
  sum.fill(0.0f);
  dv_sum.fill(0.0f);
  if (!others.empty()) {
    const int rows = static_cast<int>(own.end - own0);
    const auto first = kKeysOwn ? rows_of<const T>(f.k, b, task.head, f.D) : rows_of<const T>(f.q, b, task.head, f.D);
    const auto second =
        kKeysOwn ? rows_of<const T>(f.v, b, task.head, f.Dv) : rows_of<const T>(args.dy, b, task.head, f.Dv);
    storage.first.template load<C::kThreads>(first.from(own0), rows);
    storage.second.template load<C::kThreads>(second.from(own0), rows);
    load_stage<C, kKeysOwn>(storage.stages[0], args, numbers, b, at, others.end);
    if (!kKeysOwn) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const std::int64_t query = own0 + row + 8 * r, number = (b * f.Hq + task.head) * f.Sq + query;
        own_shift[r] = query < own.end ? numbers.shift[number] : infinity<float>();
        own_delta[r] = query < own.end ? numbers.delta[number] : 0.0f;
      }
    }
  }
  int turn = 0;
#pragma unroll 1
  while (!others.empty() && at.head < last_head) {
    const Position next = at.next(others, C::kStream);
    if (C::kStages == 2) {
      if (next.head < last_head) {
        load_stage<C, kKeysOwn>(storage.stages[turn ^ 1], args, numbers, b, next, others.end);
      } else {
        cp_async_commit_group();
      }
    }
    cp_async_wait_group<C::kStages - 1>();
    __syncthreads();
    if (busy) {
      typename C::Stage& stage = storage.stages[turn];
      typename C::Logits p, ds;
      const std::int64_t query0 = kKeysOwn ? at.row : own0, key0 = kKeysOwn ? own0 : at.row;
      const Mask whole_mask(sight, query0, key0);
      const bool open = whole_mask.is_open(kKeysOwn ? C::kStream : C::kOwn, kKeysOwn ? C::kOwn : C::kStream);
      const int column = C::Logits::col_of(0, 0), query = kKeysOwn ? column : row, key = kKeysOwn ? row : column;
      const Mask mask = whole_mask.from(query, key);
      multiply_over_width(p, storage.first, row0, stage.first);
      const T* bias = static_cast<const T*>(f.bias);
      if (bias) {
        bias += b * f.bias_batch + at.head * f.bias_head + (query0 + query) * f.bias_row + (key0 + key) * f.bias_col;
        scale_and_add_bias<kKeysOwn>(p, f, mask, bias);
      }
      finish_probabilities<C, kKeysOwn>(p, stage, own_shift, mask, open, bias ? 1.0f : factor);
      if constexpr (kKeysOwn) {
        if (args.dv.data) multiply_over_rows(dv_sum, p, stage.second, column0);
      }
      if (!kKeysOwn || args.dk.data) {
        multiply_over_width(ds, storage.second, row0, stage.second);
        finish_logit_gradients<C, kKeysOwn>(ds, p, stage, own_delta);
        multiply_over_rows(sum, ds, stage.first, column0);
      }
    }
    __syncthreads();
    at = next;
    if (C::kStages == 1 && at.head < last_head) {
      load_stage<C, kKeysOwn>(storage.stages[0], args, numbers, b, at, others.end);
    }
    if (C::kStages == 2) turn ^= 1;
  }

  const float scale = static_cast<float>(f.scale), scales[1][2] = {{scale, scale}}, ones[1][2] = {{1.0f, 1.0f}};
  if constexpr (kKeysOwn) {
    const auto dk = rows_of<T>(args.dk, b, task.head, f.D), dv = rows_of<T>(args.dv, b, task.head, f.Dv);
    if (args.dk.data) store_rows(sum, scales, dk, own0 + row0, f.Skv, column0);
    if (args.dv.data) store_rows(dv_sum, ones, dv, own0 + row0, f.Skv, column0);
  } else {
    store_rows(sum, scales, rows_of<T>(args.dq, b, task.head, f.D), own0 + row0, f.Sq, column0);
  }
}

template <class C, bool kKeysOwn>
void run(const AttentionBackwardArgs& args, const Numbers& numbers, Stream stream) {
  const AttentionArgs& f = args.forward;
  const std::int64_t tiles = ceil_div(kKeysOwn ? f.Skv : f.Sq, C::kOwn);
  const std::int64_t parts = ceil_div(kKeysOwn ? std::max(f.D, f.Dv) : f.D, C::kPart);
  const std::int64_t blocks = f.B * (kKeysOwn ? f.Hkv : f.Hq) * parts * tiles;
  if (blocks == 0) return;
  launch<attention_backward_mma_kernel<C, kKeysOwn>>(
      {.grid = {static_cast<unsigned>(blocks)}, .block = {C::kThreads}, .shared_bytes = sizeof(typename C::Storage)},
      stream, args, numbers, tiles, parts);
}

}  // namespace

void attention_backward_mma(const AttentionBackwardArgs& given, const float* shift, const float* delta, Stream stream) {
  AttentionBackwardArgs args = given;
  AttentionArgs& f = args.forward;
  const AlignedInputs inputs(f, stream);
  const Aligned dy = align(args.dy, f.B, f.Hq, f.Sq, f.Dv, f.dtype, stream);
  args.dy = dy.operand;
  dispatch_width(f.dtype, std::max(f.D, f.Dv), [&]<class T, int kWidth>() {
    using C = Config<T, kWidth>;
    if (args.dq.data) run<C, false>(args, {shift, delta}, stream);
    if (args.dk.data || args.dv.data) run<C, true>(args, {shift, delta}, stream);
  });
}

}  // namespace drupe::cuda
