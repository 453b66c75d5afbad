// Sorted contributions to rows, cut into segments of one row each and into tasks of a fixed number of them: what the
// kernels that sum them share (sparse_rows.cu, embedding_step.cu).
#pragma once

#include "cuda/tile/radix_sort.cuh"
#include "cuda/tile/row_groups.cuh"
#include "cuda/tile/segments.cuh"
#include "ops/embedding_step.h"

namespace drupe::cuda {

inline constexpr int kSumInFlight = 4;
inline constexpr int kJoinThreads = 128;
inline constexpr std::int64_t kJoinBlocks = 4096;

template <class S>
struct SegmentSum {
  using A = Accumulator<S>;
  Segments segments;
  const void* entries;
  bool packed;  // entries are PackedEntry
  const SegmentTotals* totals;
  std::int64_t tasks;  // at least those that the entries take
  const S* source;
  std::int64_t width;
  const std::int64_t* bag_of;  // where an entry carries its position
  const S* scale;
  const A* bag_scale;
  const A* argmax;
  BagMap bags;
  S* values;
  bool dense;
  A* partials;                 // (tasks, {carry, open}, width)
  std::int64_t* open_segment;  // (tasks,): the segment that begins in the task and goes on after it, or -1

  __device__ __forceinline__ std::int64_t payload(std::int64_t e) const {
    return packed ? static_cast<const PackedEntry*>(entries)[e].payload()
                  : static_cast<const WideEntry*>(entries)[e].payload();
  }
  __device__ __forceinline__ A* carry(std::int64_t task) const { return partials + 2 * task * width; }
  __device__ __forceinline__ A* open(std::int64_t task) const { return carry(task) + width; }
  __device__ __forceinline__ S* result(std::int64_t segment) const {
    return values + (dense ? segments.rows[segment] : segment) * width;
  }

  template <int kPack>
  __device__ __forceinline__ WidePack<S, kPack> term(std::int64_t e, std::int64_t column) const {
    const std::int64_t at = payload(e);
    const std::int64_t bag = bag_of ? bag_of[at] : at;
    auto row = WidePack<S, kPack>::load(source + bag * width + column);
    if (argmax) {
      const auto place = static_cast<A>(at - bags.begin(bag));
      const auto chosen = WidePack<S, kPack>::load_wide(argmax + bag * width + column);
#pragma unroll
      for (int k = 0; k < kPack; ++k) row.element[k] = chosen.element[k] == place ? row.element[k] : A(0);
    } else if (scale || bag_scale) {
      const A factor = scale ? widen(scale[at]) : bag_scale[bag];
#pragma unroll
      for (int k = 0; k < kPack; ++k) row.element[k] *= factor;
    }
    return row;
  }

  // f(e, its term) for entries [from, to), in order, several of them on their way at a time.
  template <int kPack, class F>
  __device__ __forceinline__ void for_each_term(std::int64_t from, std::int64_t to, std::int64_t column, F&& f) const {
    for (std::int64_t e = from; e < to; e += kSumInFlight) {
      WidePack<S, kPack> terms[kSumInFlight];
#pragma unroll
      for (int k = 0; k < kSumInFlight; ++k) {
        if (e + k < to) terms[k] = term<kPack>(e + k, column);
      }
#pragma unroll
      for (int k = 0; k < kSumInFlight; ++k) {
        if (e + k < to) f(e + k, terms[k]);
      }
    }
  }
};

template <class A>
struct JoinStorage {
  A partial[kJoinThreads];
};

// A block adds up a segment that crosses tasks: each of its parts a run of the carries, then the parts in order.
struct JoinThread {
  int log_lanes, lanes, parts, lane, part;

  __device__ __forceinline__ explicit JoinThread(int log)
      : log_lanes(log),
        lanes(1 << log),
        parts(kJoinThreads >> log),
        lane(static_cast<int>(threadIdx.x) & (lanes - 1)),
        part(static_cast<int>(threadIdx.x) >> log) {}
};

// One column of the segment that `task` opens: its sum, for part 0.
template <class S>
__device__ __forceinline__ Accumulator<S> join_column(const SegmentSum<S>& sum, const JoinThread& thread,
                                                      std::int64_t task, std::int64_t segment, std::int64_t column,
                                                      JoinStorage<Accumulator<S>>& storage) {
  const std::int64_t carries = ((sum.segments.begins[segment + 1] - 1) >> sum.segments.log_task) - task;
  const std::int64_t share = (carries + thread.parts - 1) / thread.parts;
  const std::int64_t from = thread.part * share, to = from + share < carries ? from + share : carries;
  Accumulator<S> total = 0;
  if (column < sum.width) {
    if (thread.part == 0) total = sum.open(task)[column];
#pragma unroll 8
    for (std::int64_t k = from; k < to; ++k) total += sum.carry(task + 1 + k)[column];
  }
  storage.partial[threadIdx.x] = total;
  __syncthreads();
  if (thread.part == 0) {
    for (int other = 1; other < thread.parts && other * share < carries; ++other) {
      total += storage.partial[(other << thread.log_lanes) + thread.lane];
    }
  }
  __syncthreads();
  return total;
}

// embedding_step.cu: a step of an optimizer that every segment's sum goes into; sum's partials and values are unset.
template <class S>
void step_segments(SegmentSum<S> sum, const RowStepArgs& step, Stream stream);

}  // namespace drupe::cuda
