// Rows of a table:  y[i...] = weight[indices[i...]]
//
//   weight   (V, D) any dtype; rows with any stride (others are copied)
//   indices  any shape, int32 or int64, in [0, V): IndexError otherwise
//   y        (*indices.shape, D)
//
// Backward sums dy's rows by index, in the order of the indices (ops/sparse_rows.h); row padding_idx gets none.
#pragma once

#include <optional>
#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

struct EmbeddingArgs {
  const void* weight;
  std::int64_t row_stride_bytes, row_bytes;
  const void* indices;
  Dtype index_dtype;
  std::int64_t size;   // indices
  std::int64_t limit;  // rows of the table
  void* y;
};

namespace ops {

// padding_idx in [-V, V) as a row; -1 for none.
std::int64_t normalize_padding(const char* op, const std::optional<std::int64_t>& padding_idx, std::int64_t rows);

Tensor embedding(const Tensor& weight, const Tensor& indices, const std::optional<std::int64_t>& padding_idx);
// (num_rows, D)
Tensor embedding_backward(const Tensor& dy, const Tensor& indices, std::int64_t num_rows,
                          const std::optional<std::int64_t>& padding_idx);
// (rows (U,), values (U, D))
std::pair<Tensor, Tensor> embedding_backward_sparse(const Tensor& dy, const Tensor& indices, std::int64_t num_rows,
                                                    const std::optional<std::int64_t>& padding_idx);

}  // namespace ops

namespace cpu {
// Checks the indices task by task, while they are in cache. False if any is out of range: then y is not complete.
template <Isa>
bool embedding(const EmbeddingArgs& args);
}  // namespace cpu

namespace cuda {
void embedding(const EmbeddingArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
