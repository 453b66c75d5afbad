// Products of a sparse matrix and a dense one:  y = alpha A x + beta z
//
//   A       (M, N) in compressed rows: a pattern (ops/csr.h) and values (entries,), of x's dtype or what arithmetic on
//           it happens in (float32 for float16 and bfloat16); without values every entry is 1
//   x       (N, D) a float dtype; rows with any stride (others are copied)
//   z       (M, D) of x's dtype, likewise; may be x
//   y       (M, D) of x's dtype; the entries of a row add up in their order, in the accumulator's dtype: those of a
//           long row (ops/csr.h) segment by segment, and then the segments
//
// Of each of x, z and y only some rows may be stored (ops/row_places.h): others of x and z are zeros and not multiplied
// with, others of y are not wanted. A row without entries gives beta z, or zeros. Backward: dx = alpha A^T dy,
// dz = beta dy, and dvalues[i] = dy[row of i] . x[indices[i]]
#pragma once

#include <optional>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"
#include "ops/csr.h"
#include "ops/row_places.h"

namespace drupe {

struct SpmmArgs {
  CsrView a;
  const void* values;  // (a.size,) accumulators, or null
  const void* x;
  std::int64_t x_stride;  // elements from row to row
  Dtype dtype;
  std::int64_t width;
  double alpha;
  const void* z;  // or null
  std::int64_t z_stride;
  double beta;
  void* y;        // (a.rows, width)
  void* partial;  // (a.segments, width) accumulators
  // Maps of those that are not stored as a whole, else null.
  const std::int32_t *x_places, *z_places, *y_places;
};

namespace ops {
Tensor spmm(const CsrPattern& a, const std::optional<Tensor>& values, const Tensor& x, double alpha,
            const std::optional<Tensor>& z, double beta, const std::optional<RowPlaces>& x_rows = {},
            const std::optional<RowPlaces>& z_rows = {}, const std::optional<RowPlaces>& y_rows = {});
// (entries,), of x's dtype.
Tensor spmm_backward_values(const CsrPattern& a, const Tensor& dy, const Tensor& x);
}  // namespace ops

namespace cpu {
template <Isa>
void spmm(const SpmmArgs& args);
}  // namespace cpu

namespace cuda {
void spmm(const SpmmArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
