// How layer_norm and rms_norm cut their work: `lanes` threads share a row, a part of a warp for a short one, else a
// block; lane l owns the packs l, l + lanes, … of every row that it meets.
#pragma once

#include "cuda/tile/map.cuh"
#include "cuda/tile/row.cuh"
#include "ops/row_norm.h"

namespace drupe::cuda {

inline constexpr int kNormThreads = 256;

struct NormPlan {
  RowNormArgs args;
  int lanes;
  int kept;                 // elements of a row in a thread's registers
  bool aligned;             // all rows and parameters begin at multiples of 16 bytes
  std::int64_t blocks = 0;  // of the grid, where they share the rows
  unsigned tiles = 1;       // long rows: blocks that share the columns
  void* partial = nullptr;  // backward: (blocks, 2 or 1, size) gradients of the parameters
};

// Elements of h = x + residual.
template <class S, int kPack = kPackSize<S>, class A>
__device__ __forceinline__ void load_norm_input(const NormPlan& plan, std::int64_t row, std::int64_t begin,
                                                std::int64_t size, A* values) {
  const std::int64_t offset = row * plan.args.size;
  load_block<kPack>(static_cast<const S*>(plan.args.x) + offset, begin, size, plan.aligned, A(0), values);
  if (!plan.args.residual) return;
  A added[kPack];
  load_block<kPack>(static_cast<const S*>(plan.args.residual) + offset, begin, size, plan.aligned, A(0), added);
#pragma unroll
  for (int k = 0; k < kPack; ++k) values[k] += added[k];
}

// Elements of a parameter, `fill` where there is none.
template <int kPack, class A>
__device__ __forceinline__ void load_norm_parameter(const NormPlan& plan, const void* parameter, std::int64_t begin,
                                                    A fill, A* values) {
  load_block<kPack>(static_cast<const A*>(parameter), begin, parameter ? plan.args.size : 0, plan.aligned, fill,
                    values);
}

// The elements of a row that its threads must hold between them.
template <class S>
std::int64_t norm_items(const RowNormArgs& args) {
  return (args.size + kPackSize<S> - 1) / kPackSize<S> * kPackSize<S>;
}

template <class S>
NormPlan plan_norm(const RowNormArgs& args, int few, int many) {
  NormPlan plan{.args = args, .lanes = 0, .kept = 0, .aligned = args.size % kPackSize<S> == 0};
  for (const void* p : {args.x, args.residual, args.weight, args.bias, args.dy, static_cast<const void*>(args.y)}) {
    plan.aligned = plan.aligned && is_pack_aligned(p);
  }
  const RowShare share = choose_row_share(norm_items<S>(args), few, many, kNormThreads);
  plan.lanes = share.lanes;
  plan.kept = share.kept;
  return plan;
}

}  // namespace drupe::cuda
