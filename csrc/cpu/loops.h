// Walks a loop nest in parallel, a run of its innermost dimension at a time.
#pragma once

#include <algorithm>

#include "core/loops.h"
#include "core/parallel.h"
#include "cpu/simd.h"

namespace drupe::cpu {

// Calls row(offsets, count) for runs of at most `grain` elements that together are the whole nest; offsets[k] is where
// the run starts in operand k. Runs of one task follow one another in memory order of the first operand.
template <Isa I, int N, class F>
void for_each_row(const Loops& loops, std::int64_t grain, const F& row) {
  const int outer = std::max(loops.shape.size() - 1, 0);
  const std::int64_t inner = loops.shape.empty() ? 1 : loops.shape[outer];
  std::int64_t rows = 1;
  for (int d = 0; d < outer; ++d) rows *= loops.shape[d];
  const std::int64_t pieces = (inner + grain - 1) / grain;
  const std::int64_t rows_per_task = std::max<std::int64_t>(1, grain / inner);
  const std::int64_t groups = (rows + rows_per_task - 1) / rows_per_task;
  parallel_for(groups * pieces, [&](std::int64_t task) {
    const std::int64_t begin = task % pieces * grain;
    const std::int64_t count = std::min(grain, inner - begin);
    const std::int64_t first = task / pieces * rows_per_task;
    std::int64_t index[kMaxDims];
    std::int64_t offsets[N];
    for (int k = 0; k < N; ++k) offsets[k] = begin == 0 ? 0 : begin * loops.strides[k][outer];
    std::int64_t rest = first;
    for (int d = outer - 1; d >= 0; --d) {
      index[d] = rest % loops.shape[d];
      rest /= loops.shape[d];
      for (int k = 0; k < N; ++k) offsets[k] += index[d] * loops.strides[k][d];
    }
    for (std::int64_t r = first; r < std::min(rows, first + rows_per_task); ++r) {
      row(offsets, count);
      for (int d = outer - 1; d >= 0; --d) {
        const bool carry = ++index[d] == loops.shape[d];
        const std::int64_t steps = carry ? 1 - loops.shape[d] : 1;
        for (int k = 0; k < N; ++k) offsets[k] += steps * loops.strides[k][d];
        if (!carry) break;
        index[d] = 0;
      }
    }
  });
}

// An operand's row for a kernel that steps through it by 0 or 1: an operand that is constant along the row is spread
// over `lanes`, so that loading at step 0 always gives it.
template <class T, int kLanes>
struct RowOperand {
  T lanes[kLanes];
  const T* data;
  std::int64_t step;

  DRUPE_INLINE RowOperand(const void* base, std::int64_t offset, std::int64_t stride) {
    data = static_cast<const T*>(base) + offset;
    step = stride;
    if (stride != 0) return;
    for (T& lane : lanes) lane = *data;
    data = lanes;
  }
  RowOperand(const RowOperand&) = delete;
  DRUPE_INLINE const T* at(std::int64_t i) const { return data + i * step; }
};

// The innermost stride of operand k.
DRUPE_INLINE std::int64_t inner_stride(const Loops& loops, int k) {
  return loops.shape.empty() ? 0 : loops.strides[k][loops.shape.size() - 1];
}

}  // namespace drupe::cpu
