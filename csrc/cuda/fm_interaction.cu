// The second-order term of a factorization machine. A warp has an example: 2^k lanes lie along the columns (a pack
// each), and 32 / 2^k such groups take turns at the fields; their sums meet by shuffles. More columns than 32 packs
// come in rounds. Backward reads the example a second time, from cache. Bytes: v once, and dv.
#include "ops/fm_interaction.h"

#include "core/dispatch.h"
#include "cuda/tile/row_groups.cuh"

namespace drupe::cuda {
namespace {

// Where a lane works: fields `field`, `field` + fields, …, columns from `column` on.
struct FmLane {
  std::int64_t example, field, fields, column, columns;

  __device__ __forceinline__ FmLane(int log_lanes, int pack)
      : example(global_thread() / kWarp),
        field((threadIdx.x % kWarp) >> log_lanes),
        fields(kWarp >> log_lanes),
        column((threadIdx.x & ((1u << log_lanes) - 1)) * pack),
        columns(std::int64_t{pack} << log_lanes) {}
};

// The sum over all groups of lanes, in each of them.
template <class A, int kPack>
__device__ __forceinline__ void add_groups(WidePack<A, kPack>& sum, int log_lanes) {
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    for (int lanes = kWarp / 2; lanes >> log_lanes > 0; lanes /= 2) {
      sum.element[k] += __shfl_xor_sync(kFullMask, sum.element[k], lanes);
    }
  }
}

template <class S, int kPack>
__global__ __launch_bounds__(kMapThreads, 4) void fm_interaction_kernel(FmInteractionArgs args, int log_lanes) {
  using A = Accumulator<S>;
  const FmLane lane(log_lanes, kPack);
  if (lane.example >= args.B) return;  // whole warps
  const S* v = static_cast<const S*>(args.v) + lane.example * args.F * args.E;
  const S* end = v + args.F * args.E;
  A y = A(0);
  for (std::int64_t first = 0; first < args.E; first += lane.columns) {
    const std::int64_t column = first + lane.column;
    auto sum = WidePack<A, kPack>::zero();
    A squares = A(0);
    if (column < args.E) {
#pragma unroll 4
      for (const S* at = v + lane.field * args.E + column; at < end; at += lane.fields * args.E) {
        const auto x = WidePack<S, kPack>::load(at);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          sum.element[k] += x.element[k];
          squares = std::fma(x.element[k], x.element[k], squares);
        }
      }
    }
    add_groups(sum, log_lanes);
    y -= squares;
    if (lane.field == 0) {
#pragma unroll
      for (int k = 0; k < kPack; ++k) y = std::fma(sum.element[k], sum.element[k], y);
    }
  }
  y = warp_reduce(y, Sum{});
  if (threadIdx.x % kWarp == 0) static_cast<S*>(args.y)[lane.example] = narrow<S>(A(0.5) * y);
}

template <class S, int kPack>
__global__ __launch_bounds__(kMapThreads, 4) void fm_interaction_backward_kernel(FmInteractionArgs args,
                                                                                 int log_lanes) {
  using A = Accumulator<S>;
  const FmLane lane(log_lanes, kPack);
  if (lane.example >= args.B) return;  // whole warps
  const std::int64_t example = lane.example * args.F * args.E;
  const S* v = static_cast<const S*>(args.v) + example;
  S* dv = static_cast<S*>(args.dv) + example;
  const A dy = widen(static_cast<const S*>(args.dy)[lane.example]);
  for (std::int64_t first = 0; first < args.E; first += lane.columns) {
    const std::int64_t column = first + lane.column;
    auto sum = WidePack<A, kPack>::zero();
    if (column < args.E) {
#pragma unroll 4
      for (std::int64_t f = lane.field; f < args.F; f += lane.fields) {
        const auto x = WidePack<S, kPack>::load(v + f * args.E + column);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum.element[k] += x.element[k];
      }
    }
    add_groups(sum, log_lanes);
    if (column >= args.E) continue;
    for (std::int64_t f = lane.field; f < args.F; f += lane.fields) {
      auto x = WidePack<S, kPack>::load(v + f * args.E + column);
#pragma unroll
      for (int k = 0; k < kPack; ++k) x.element[k] = dy * (sum.element[k] - x.element[k]);
      x.store(dv + f * args.E + column);
    }
  }
}

// Calls run.operator()<S, kPack>(config, log_lanes).
template <class Run>
void choose_pack(const FmInteractionArgs& args, Run run) {
  dispatch_float(args.dtype, [&]<class S>() {
    const LaunchConfig config{.grid = {blocks_for(args.B * kWarp)}, .block = {kMapThreads}};
    if (args.E % kPackSize<S> == 0 && is_pack_aligned(args.v, args.dv)) {
      run.template operator()<S, kPackSize<S>>(config, RowGroups(1, args.E / kPackSize<S>).log_lanes);
    } else {
      run.template operator()<S, 1>(config, RowGroups(1, args.E).log_lanes);
    }
  });
}

}  // namespace

void fm_interaction(const FmInteractionArgs& args, Stream stream) {
  choose_pack(args, [&]<class S, int kPack>(const LaunchConfig& config, int log_lanes) {
    launch<fm_interaction_kernel<S, kPack>>(config, stream, args, log_lanes);
  });
}

void fm_interaction_backward(const FmInteractionArgs& args, Stream stream) {
  choose_pack(args, [&]<class S, int kPack>(const LaunchConfig& config, int log_lanes) {
    launch<fm_interaction_backward_kernel<S, kPack>>(config, stream, args, log_lanes);
  });
}

}  // namespace drupe::cuda
