// The arithmetic of the reductions, and what their kernels are told.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "cuda/tile/reduce.cuh"
#include "cuda/tile/strided.cuh"
#include "ops/reduce.h"

namespace drupe::cuda {

// `other` covers products, any and all, and whatever is done to integers; which of them is known at run time.
enum class ReduceKind { sum, extremum, other, squares, exponentials };

// Subtracting an infinite maximum would make NaN of the others.
template <class A>
__device__ __forceinline__ A finite_or_zero(A shift) {
  return std::fabs(shift) <= std::numeric_limits<A>::max() ? shift : A(0);
}

// The arithmetic. Minima of floats are the negated maxima of the negated elements.
template <ReduceKind kKind, class S>
struct ReduceRule {
  using Source = S;
  static constexpr bool kFloat = std::is_floating_point_v<Accumulator<S>>;
  using A = std::conditional_t<kFloat, Accumulator<S>, std::int64_t>;
  Reduction op;

  __device__ __forceinline__ A identity() const {
    using Limits = std::numeric_limits<A>;
    if constexpr (kKind == ReduceKind::extremum) return -Limits::infinity();
    if constexpr (kKind != ReduceKind::other) return A(0);
    if (op == Reduction::prod || op == Reduction::all) return A(1);
    if (op == Reduction::max) return Limits::lowest();
    if (op == Reduction::min) return Limits::max();
    return A(0);
  }
  __device__ __forceinline__ A shift(const A* shifts, std::int64_t at) const {
    if constexpr (kKind == ReduceKind::squares) return shifts[at];
    if constexpr (kKind == ReduceKind::exponentials) return finite_or_zero(shifts[at]);
    return A(0);
  }
  __device__ __forceinline__ A map(S stored, A shift) const {
    const A x = static_cast<A>(widen(stored));
    if constexpr (kKind == ReduceKind::squares) return (x - shift) * (x - shift);
    if constexpr (kKind == ReduceKind::exponentials) return std::exp(x - shift);
    if constexpr (kKind == ReduceKind::extremum) return op == Reduction::min ? -x : x;
    if constexpr (kKind == ReduceKind::other) return op == Reduction::any || op == Reduction::all ? A(x != A(0)) : x;
    return x;
  }
  __device__ __forceinline__ A operator()(A a, A b) const {
    if constexpr (kKind == ReduceKind::extremum) return Maximum{}(a, b);
    if constexpr (kKind != ReduceKind::other) return a + b;
    if (op == Reduction::any || op == Reduction::max) return a > b ? a : b;
    if (op == Reduction::all || op == Reduction::min) return a < b ? a : b;
    // Integers wrap around.
    using U = std::conditional_t<kFloat, A, std::uint64_t>;
    const U u = static_cast<U>(a), v = static_cast<U>(b);
    return static_cast<A>(op == Reduction::prod ? u * v : u + v);
  }
};

template <class A>
struct ReducePlan {
  const void* x;
  void* y;
  const A* shift;
  A* partial;           // (splits, results), in place of y where there are several splits
  Strided<2> kept;      // x, y
  Strided<1> reduced;   // rows: all but the innermost of them
  std::int64_t run;     // rows: the extent of the innermost
  Divisor results;      // kept.size
  Divisor blocks;       // rows: 16-byte blocks of a run, the most that it can touch
  std::int64_t splits;  // of each result
  std::int64_t length;  // of a split, in blocks or (columns) in rows
  unsigned tiles;       // columns: blocks that share the results
  int lanes;            // rows: threads of a result; columns: packs of a block's results
  Reduction op;
  bool negated;
  Finish finish;
  A divisor;
  Dtype y_dtype;
};

template <class A>
__device__ __forceinline__ void store_reduced(const ReducePlan<A>& plan, std::int64_t at, A value) {
  if constexpr (std::is_floating_point_v<A>) {
    if (plan.negated) value = -value;
    if (plan.finish == Finish::divide) value /= plan.divisor;
    if (plan.finish == Finish::log_shift) value = std::log(value) + finite_or_zero(plan.shift[at]);
    if constexpr (std::is_same_v<A, float>) {
      if (plan.y_dtype == Dtype::f16) return void(static_cast<Float16*>(plan.y)[at] = narrow<Float16>(value));
      if (plan.y_dtype == Dtype::bf16) return void(static_cast<BFloat16*>(plan.y)[at] = narrow<BFloat16>(value));
    }
    if (plan.y_dtype != Dtype::boolean) return void(static_cast<A*>(plan.y)[at] = value);
  } else {
    if (plan.y_dtype == Dtype::i64) return void(static_cast<std::int64_t*>(plan.y)[at] = value);
    if (plan.y_dtype == Dtype::i32) return void(static_cast<std::int32_t*>(plan.y)[at] = static_cast<int>(value));
  }
  // int8, uint8 and bool, as its byte
  static_cast<std::uint8_t*>(plan.y)[at] = static_cast<std::uint8_t>(value);
}

}  // namespace drupe::cuda
