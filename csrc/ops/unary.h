// Pointwise functions of one operand.
//
//   exp expm1 log log1p sqrt rsqrt reciprocal sin cos erf   float dtypes
//   floor ceil round                                        float dtypes; round takes ties to even
//   isnan isfinite                                          float dtypes; y is bool
//   neg abs square sign                                     float and integer dtypes; integers wrap around
//   logical_not                                             any dtype; y is bool
//   clamp                                                   min(max(x, low), high); float dtypes; NaN stays NaN
//
// y keeps the memory order of a dense x, and is C-contiguous otherwise. float16 and bfloat16 are computed in float32.
#pragma once

#include <string>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

enum class Unary : std::uint8_t {
  neg,
  abs,
  square,
  sign,
  logical_not,
  exp,
  expm1,
  log,
  log1p,
  sqrt,
  rsqrt,
  reciprocal,
  sin,
  cos,
  erf,
  floor,
  ceil,
  round,
  isnan,
  isfinite,
  clamp
};

struct UnaryArgs {
  const void* x = nullptr;   // backward: what its rule reads, see unary_backward
  const void* dy = nullptr;  // backward only
  void* y = nullptr;         // dx in backward
  std::int64_t size = 0;     // elements
  Dtype dtype = Dtype::f32;
  Unary op;
  double low = 0, high = 0;  // clamp only
};

namespace ops {

Tensor unary(const std::string& name, const Tensor& x);
// NaN bounds, or low > high, are errors.
Tensor clamp(const Tensor& x, double low, double high);

// dx = dy f'(x), where `saved` is y = f(x) for expm1, sqrt, rsqrt and reciprocal, and x for abs, square, log1p, sin,
// cos and erf. The others need no kernel of their own.
Tensor unary_backward(const std::string& name, const Tensor& dy, const Tensor& saved);
// dx = dy where low <= x <= high, else 0.
Tensor clamp_backward(const Tensor& dy, const Tensor& x, double low, double high);

}  // namespace ops

namespace cpu {
template <Isa>
void unary(const UnaryArgs& args);
template <Isa>
void unary_backward(const UnaryArgs& args);
}  // namespace cpu

namespace cuda {
void unary(const UnaryArgs& args, Stream stream);
void unary_backward(const UnaryArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
