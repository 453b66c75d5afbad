// Reductions over any set of axes.
//
//   sum prod            float dtypes keep theirs; integers and bool give int64, which wraps around
//   mean                sum / n                                               float dtypes
//   var                 sum (x - mean)^2 / (n - ddof), in two passes          float dtypes
//   logsumexp           log sum e^x, shifted by the maximum                   float dtypes
//   max min             any dtype; NaN where any element is NaN
//   any all             any dtype, nonzero (NaN too) is true; bool
//
// Over no elements: sum 0, prod 1, any false, all true, mean and var NaN, logsumexp -infinity, and an error for the
// others. float16 and bfloat16 accumulate in float32. Sums are taken in blocks of a fixed size that are then added
// pairwise: the error grows with the logarithm of n, and the bits do not depend on the number of threads
// (Higham, The accuracy of floating point summation, 1993).
#pragma once

#include <string>

#include "core/loops.h"
#include "core/stream.h"
#include "cpu/isa.h"

namespace drupe {

enum class Reduction : std::uint8_t { sum, prod, max, min, any, all, sum_squares, sum_exp };

// What becomes of the accumulated value v: v, v / divisor, or log(v) + shift.
enum class Finish : std::uint8_t { none, divide, log_shift };

struct ReduceArgs {
  const void* x;
  void* y;                      // contiguous along its fastest dimension
  const void* shift = nullptr;  // laid out as y, of the accumulator's dtype: sum (x - shift)^2, sum e^(x - shift)
  Loops kept;                   // operands: x, y
  Loops reduced;                // operand: x
  bool columns;                 // x's dimension of stride 1 is the innermost kept one, else the innermost reduced one
  Dtype dtype;                  // of x
  Dtype y_dtype;
  Reduction op;
  Finish finish = Finish::none;
  double divisor = 1;
};

namespace ops {

// An empty `axes` means all of them. Reduced axes are dropped, or kept with extent 1.
Tensor reduce(const std::string& name, const Tensor& x, const Dims& axes, bool keepdims);
Tensor var(const Tensor& x, const Dims& axes, std::int64_t ddof, bool keepdims);

}  // namespace ops

namespace cpu {
template <Isa>
void reduce(const ReduceArgs& args);
}  // namespace cpu

namespace cuda {
void reduce(const ReduceArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
