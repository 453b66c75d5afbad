// Symmetric quantisation to int8, a scale for each row along one axis:
//
//   scale = max |x| / 127        q = round(x / scale), ties to even, within -127 … 127        x is about q scale
//
//   x      any shape, float dtypes (float64 is rounded to float32 first)
//   q      int8, x's shape; contiguous along the axis, whichever it is
//   scale  float32, x's shape without the axis
//
// In float32, each operation rounded once: the same on every device. A row of zeros (and one so small that its scale
// rounds to 0) gives scale 0 and q 0, which dequantise to zeros. A row with a NaN or an infinity gives scale NaN and
// q 0: dequantised, it is NaN throughout. An axis without elements gives scale 0.
#pragma once

#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

struct QuantizeInt8Args {
  const void* x;  // (rows, size), contiguous
  std::int8_t* q;
  float* scale;
  std::int64_t rows, size;
  Dtype dtype;  // of x: float32, float16 or bfloat16
};

namespace ops {

// (q, scale)
std::pair<Tensor, Tensor> quantize_int8(const Tensor& x, std::int64_t axis);

}  // namespace ops

namespace cpu {
template <Isa>
void quantize_int8(const QuantizeInt8Args& args);
}  // namespace cpu

namespace cuda {
void quantize_int8(const QuantizeInt8Args& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
