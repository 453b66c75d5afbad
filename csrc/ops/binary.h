// Pointwise operations on two operands, broadcast against each other as NumPy does: y[i] = f(a[i], b[i]).
//
//   add sub mul             any dtype but bool; integers wrap around
//   div                     a / b; on integers rounded towards minus infinity, and an error where b is 0
//   pow                     a^b; on integers b must not be negative
//   maximum minimum         any dtype; NaN where either is NaN
//   eq ne lt le gt ge       any dtype; y is bool
//   logical_and logical_or  any dtype, nonzero is true; y is bool
//
// Both operands have one dtype. y keeps the memory order of a dense operand of its shape (a's before b's), and is
// C-contiguous otherwise. float16 and bfloat16 are computed in float32.
#pragma once

#include <string>

#include "core/loops.h"
#include "core/stream.h"
#include "cpu/isa.h"

namespace drupe {

enum class Binary : std::uint8_t {
  add,
  sub,
  mul,
  div,
  pow,
  maximum,
  minimum,
  eq,
  ne,
  lt,
  le,
  gt,
  ge,
  logical_and,
  logical_or
};

// Operands of the loops: y, a, b. Along the innermost dimension y steps by 1, a and b by 0 or 1.
struct BinaryArgs {
  void* y;
  const void* a;
  const void* b;
  Loops loops;
  Dtype dtype;  // of a and b
  Binary op;
};

struct WhereArgs {
  void* y;
  const void* condition;  // bool
  const void* a;
  const void* b;
  Loops loops;  // y, condition, a, b; innermost strides as above
  Dtype dtype;
};

namespace ops {

Tensor binary(const std::string& name, const Tensor& a, const Tensor& b);

// y[i] = condition[i] ? a[i] : b[i], all three broadcast; a and b of one dtype, any.
Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b);

// x itself where its broadcast to y's shape steps by 0 or 1 along y's fastest dimension, otherwise a copy that does.
Tensor align_to(const Tensor& x, const Tensor& y);

}  // namespace ops

namespace cpu {
template <Isa>
void binary(const BinaryArgs& args);
template <Isa>
void where(const WhereArgs& args);
}  // namespace cpu

namespace cuda {
void binary(const BinaryArgs& args, Stream stream);
void where(const WhereArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
