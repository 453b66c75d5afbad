// General matrix product with a fused epilogue:
//
//   y = activation(alpha op(a) op(b) + bias + residual), or, on the way back,
//   y = activation'(saved) (alpha op(a) op(b) + residual)
//
//   a         (..., M, K), or (..., K, M) with transpose_a      float dtypes, all operands alike
//   b         (..., K, N), or (..., N, K) with transpose_b
//   bias      (N,)                                              optional
//   residual  broadcastable to (..., M, N)                      optional
//   saved     (..., M, N), what ops/activation.h says           optional
//   y         (..., M, N), C-contiguous, fresh; leading dimensions broadcast as NumPy's matmul does
//
// Any strides are accepted; no operand is copied as a whole. Products accumulate in float32 for float16 and
// bfloat16, in the dtype itself otherwise, in an order that depends on K alone (with few rows, and on a GPU, also on
// the other sizes, the layout and the device). With the precision "high" a GPU may round float32 operands to tf32 (10
// bits after the point, to nearest; beyond 2^128 - 2^116 to infinity) for its tensor cores; sums stay float32. K = 0
// gives activation(bias + residual). On the CPU the scheme is Goto & van de Geijn's (Anatomy of High-Performance Matrix
// Multiplication, 2008).
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"
#include "ops/activation.h"

namespace drupe {

// Strides count elements; batch strides follow batch_shape. y is contiguous.
struct GemmArgs {
  std::int64_t M, N, K;
  const void* a;
  std::int64_t a_row, a_col;
  const void* b;
  std::int64_t b_row, b_col;
  void* y;
  const void* bias = nullptr;
  const void* residual = nullptr;
  std::int64_t residual_row = 0, residual_col = 0;
  void* pre_activation = nullptr;  // where to keep the activation's input, laid out as y
  const void* saved = nullptr;     // laid out as y: to multiply by the activation's derivative there; on the CPU alone
  void* column_sums = nullptr;     // (gemm_parts, N) of the accumulator's dtype, where to put sums of some of y's rows
                                   // each, beside `saved` and without a batch
  Dims batch_shape, a_batch, b_batch, residual_batch;
  double alpha = 1;
  Activation activation = Activation::none;
  Dtype dtype;
  bool tf32 = false;               // float32 operands may be rounded
  const void* b_panels = nullptr;  // b as pack_gemm wrote it, where b has no batch
};

// A matrix b, and a copy of it in the order in which this processor's kernels read it.
struct PackedMatrix {
  Tensor matrix;  // as it was given
  bool transpose;
  Isa isa;        // whose kernels
  Tensor panels;  // bytes; undefined where there is nothing to gain: on a GPU

  const void* readable_panels() const;  // null where the kernels in use would not read them
};

struct GemmOptions {
  bool transpose_a = false;
  bool transpose_b = false;
  double alpha = 1;
  std::string activation = {};
  bool keep_pre_activation = false;         // give the activation's input as the second result
  std::optional<PackedMatrix> packed = {};  // b, packed before: the same result, without packing it again
  std::optional<Tensor> saved = {};         // multiply by the activation's derivative there, instead of applying it
  bool sum_columns = false;                 // beside `saved`: give the sums of all rows, (N,), as the second result
};

namespace ops {

// "highest", as at the start: float32 products are exact to float32. "high": on a GPU their operands may be rounded to
// tf32. For the whole process; the CPU's are always exact. Throws std::invalid_argument for another name.
void set_float32_matmul_precision(const std::string& name);
const char* float32_matmul_precision();

// (y, pre-activation or sums); the second is undefined unless asked for.
std::pair<Tensor, Tensor> gemm(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& residual, const GemmOptions& options);

// b (K, N), or (N, K) with transpose, for products with more than a few rows. The copy takes b's bytes, twice that for
// float16, and for bfloat16 where the processor has no dot instruction for it. Changes of b do not reach it.
PackedMatrix pack_weight(const Tensor& b, bool transpose);

}  // namespace ops

namespace cpu {
template <Isa>
void gemm(const GemmArgs& args);

// How many rows args.column_sums has.
template <Isa>
std::int64_t gemm_parts(const GemmArgs& args);

// Writes b in panels, if given, and returns their size in bytes. Of args, it reads what describes b.
template <Isa>
std::int64_t pack_gemm(const GemmArgs& args, void* panels);
}  // namespace cpu

namespace cuda {
void gemm(const GemmArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
