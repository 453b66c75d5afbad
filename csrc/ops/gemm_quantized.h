// Matrix product with a quantised weight, for inference on the CPU:
//
//   y = activation(a w + bias + residual)       w[k, n] = scale[n, k / group] q[n, k]
//
//   a         (..., M, K) float32, float16 or bfloat16
//   w         (K, N), or (N, K): as quantize_weight took it, in integers of 8 or 4 bits
//   bias      (N,)                              optional, as a
//   residual  broadcastable to (..., M, N)      optional, as a
//   y         (..., M, N), C-contiguous, fresh, as a
//
// Sums are float32. Few rows read the integers, whose groups' sums are scaled; more rows multiply
// what dequantises to, rounded to float32, or to bfloat16 where a is that and the processor has a dot instruction.
// Symmetric quantisation: scale = max|w| / most over the group, q = round(w / scale), ties to even, within -most and
// most, which is 127 or 7. A group of zeros, or one whose scale is 0 in float32, gives scale 0 and q 0.
#pragma once

#include <optional>
#include <string>

#include "ops/gemm.h"

namespace drupe {

inline constexpr std::int64_t kQuantizedCols = 32;  // of a panel

// A weight in panels of columns, the last one filled up with zeros. A row of a panel is its columns' bytes, or with 4
// bits 16 bytes, which hold in their low halves the first 16 columns and in the high ones the others.
struct QuantizedMatrix {
  std::int64_t N, K;
  bool transpose;      // whether it was given as (N, K)
  int bits;            // 8 or 4
  std::int64_t group;  // how many neighbours along K share a scale
  Tensor values;       // (panels, K, 4 bits) uint8
  Tensor scales;       // (panels, groups, kQuantizedCols) float32

  std::int64_t panels() const { return (N + kQuantizedCols - 1) / kQuantizedCols; }
  std::int64_t groups() const { return (K + group - 1) / group; }
};

// Element (k, n) of b lies at b[k * b_row + n * b_col].
struct QuantizeWeightArgs {
  const void* b;
  std::int64_t b_row, b_col, K, N, group;
  int bits;
  Dtype dtype;  // of b: float32, float16 or bfloat16
  std::uint8_t* values;
  float* scales;  // NaN where a group has a NaN or an infinity
};

struct GemmQuantizedArgs {
  GemmArgs product;  // of one matrix a, contiguous; without b
  const std::uint8_t* values;
  const float* scales;
  std::int64_t group;
  int bits;
};

namespace ops {

// bits 8 or 4; group at least 1. Throws std::invalid_argument where b has a NaN or an infinity, or lies on a GPU.
QuantizedMatrix quantize_weight(const Tensor& b, bool transpose, int bits, std::int64_t group);

Tensor gemm_quantized(const Tensor& a, const QuantizedMatrix& weight, const std::optional<Tensor>& bias,
                      const std::optional<Tensor>& residual, const std::string& activation);

}  // namespace ops

namespace cpu {
template <Isa>
void quantize_weight(const QuantizeWeightArgs& args);
template <Isa>
void gemm_quantized(const GemmQuantizedArgs& args);
}  // namespace cpu

}  // namespace drupe
