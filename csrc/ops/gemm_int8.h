// Product of quantised matrices: y = activation(scale_a[m] scale_b[n] sum_k a[m, k] b[n, k] + bias[n])
//
//   a        (..., M, K) int8
//   b        (K, N) int8, or (N, K) with transpose_b
//   scale_a  float32, broadcastable to (..., M): one for each row, or one for all
//   scale_b  float32, broadcastable to (N,)
//   bias     (N,) float32, float16 or bfloat16, optional
//   y        (..., M, N) float32, float16 or bfloat16, C-contiguous, fresh
//
// The sum is exact: int32 holds K products of magnitude at most 128 x 128 where K <= 131071, which is checked. It is
// rounded to float32, in which the rest happens. The kernels walk along K: an operand that does not lie along it (b
// as (K, N), C-contiguous) is copied first. Scales from quantize_int8 fit: of a over its last axis, of b over K.
#pragma once

#include <optional>
#include <string>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"
#include "ops/activation.h"

namespace drupe {

inline constexpr std::int64_t kGemmInt8MaxK = 131071;

// a (M, K) and b (N, K) are contiguous, and so is y.
struct GemmInt8Args {
  std::int64_t M, N, K;
  const std::int8_t* a;
  const std::int8_t* b;
  const float* scale_a;  // (M,)
  const float* scale_b;  // (N,)
  const float* bias;     // (N,) or null
  void* y;
  Activation activation;
  Dtype dtype;  // of y
};

namespace ops {

Tensor gemm_int8(const Tensor& a, const Tensor& b, const Tensor& scale_a, const Tensor& scale_b,
                 const std::optional<Tensor>& bias, bool transpose_b, const std::string& activation, Dtype dtype);

}  // namespace ops

namespace cpu {
template <Isa>
void gemm_int8(const GemmInt8Args& args);
}  // namespace cpu

namespace cuda {
void gemm_int8(const GemmInt8Args& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
