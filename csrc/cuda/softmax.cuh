// How softmax and its backward pass cut their work. Rows (inner = 1): a row that fits stays in the registers of some
// lanes of a warp, or of a block, from its only read on; a block sweeps a longer one twice. Columns (inner > 1): a
// block owns some packs of neighbouring columns, and its threads share the axis in `parts`, merged in shared memory.
#pragma once

#include "core/dispatch.h"
#include "cuda/tile/map.cuh"
#include "cuda/tile/row.cuh"
#include "cuda/tile/strided.cuh"
#include "ops/softmax.h"

namespace drupe::cuda {

inline constexpr int kSoftmaxThreads = 256;
// Blocks of a multiprocessor where no row is kept in registers; left to itself, the compiler spills to make it five.
inline constexpr int kSoftmaxResident = 2;
inline constexpr int kSoftmaxFew = 8, kSoftmaxMany = 32;  // a thread's elements of a row in registers

struct SoftmaxRows {
  const void* x;  // backward: y
  const void* dy;
  void* y;  // backward: dx
  std::int64_t rows, size;
  int lanes;     // of a row
  bool aligned;  // all operands' rows begin equally far into 16-byte blocks
  bool log;
};

// The row of this thread's group, and its first block of the row.
template <class S>
struct SoftmaxRowPart {
  std::int64_t row, offset;
  bool counts;
  int lane, skew;
  __device__ __forceinline__ explicit SoftmaxRowPart(const SoftmaxRows& plan) {
    const int per_block = kSoftmaxThreads / plan.lanes;
    row = std::int64_t{blockIdx.x} * per_block + static_cast<int>(threadIdx.x) / plan.lanes;
    counts = row < plan.rows;
    lane = static_cast<int>(threadIdx.x) % plan.lanes;
    offset = row * plan.size;
    skew = plan.aligned ? skew_of(static_cast<const S*>(plan.x) + offset) : 0;
  }
};

template <class A>
struct SoftmaxRowStorage {
  ReduceStorage<A, kSoftmaxThreads> first, second;
};

struct SoftmaxColumns {
  const void* x;
  const void* dy;
  void* y;
  std::int64_t outer, size;
  Divisor inner;
  int lanes;  // packs of columns of a block
  bool log;
};

// Where this thread's columns begin, and its share of the axis.
template <int kPack>
struct SoftmaxColumnPart {
  int thread, part, parts;
  std::int64_t offset, begin;
  __device__ __forceinline__ explicit SoftmaxColumnPart(const SoftmaxColumns& plan) {
    thread = static_cast<int>(threadIdx.x);
    part = thread / plan.lanes;
    parts = kSoftmaxThreads / plan.lanes;
    const std::int64_t column = (std::int64_t{blockIdx.x} * plan.lanes + thread % plan.lanes) * kPack;
    const std::int64_t slice = column / plan.inner;
    offset = slice * plan.size * plan.inner.value + (column - slice * plan.inner.value);
    begin = slice < plan.outer ? part : plan.size;
  }
};

// Calls rows.operator()<S>(plan, items), the elements of a row that a thread keeps in registers or 0, or
// columns.operator()<S, kPack>().
template <class Rows, class Columns>
void dispatch_softmax(const SoftmaxArgs& args, Rows&& rows, Columns&& columns) {
  const void* const dy = args.dy ? args.dy : args.y;
  const auto place = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16; };
  dispatch_float(args.dtype, [&]<class S>() {
    constexpr std::int64_t kPack = kPackSize<S>;
    if (args.inner > 1) {
      const bool packs = is_pack_aligned(args.x, args.y, dy) && args.inner % kPack == 0;
      return packs ? columns.template operator()<S, kPack>() : columns.template operator()<S, 1>();
    }
    SoftmaxRows plan{.x = args.x,
                     .dy = args.dy,
                     .y = args.y,
                     .rows = args.outer,
                     .size = args.size,
                     .lanes = kSoftmaxThreads,
                     .aligned = place(args.x) == place(args.y) && place(dy) == place(args.y),
                     .log = args.log};
    const bool skewed = plan.aligned && (place(args.x) != 0 || args.size % kPack != 0);
    const std::int64_t blocks = (args.size + (skewed ? kPack - 1 : 0) + kPack - 1) / kPack, items = blocks * kPack;
    const RowShare share = choose_row_share(items, kSoftmaxFew, kSoftmaxMany, kSoftmaxThreads);
    plan.lanes = share.lanes;
    rows.template operator()<S>(plan, share.kept);
  });
}

inline LaunchConfig config_of(const SoftmaxRows& plan, std::size_t shared_bytes) {
  return {.grid = {blocks_for(plan.rows, 1, kSoftmaxThreads / plan.lanes)},
          .block = {kSoftmaxThreads},
          .shared_bytes = shared_bytes};
}

inline SoftmaxColumns plan_softmax_columns(const SoftmaxArgs& args, std::int64_t packs) {
  return {.x = args.x,
          .dy = args.dy,
          .y = args.y,
          .outer = args.outer,
          .size = args.size,
          .inner = Divisor(args.inner),
          .lanes = kSoftmaxThreads / choose_column_parts(packs, args.size, kSoftmaxThreads),
          .log = args.log};
}

inline LaunchConfig config_of(const SoftmaxColumns& plan, std::int64_t packs, std::size_t shared_bytes) {
  return {.grid = {blocks_for(packs, 1, plan.lanes)}, .block = {kSoftmaxThreads}, .shared_bytes = shared_bytes};
}

}  // namespace drupe::cuda
