// Gradients that are zero but for some rows: pairs of indices (U,) int64, ascending and unique, and values (U, D).
//
//   sum_rows    out[r] = sum over the contributions i with rows[i] = r, in the order of i, of scale(i) source(i)
//   merge_rows  the sum of several such pairs
//   add_rows    dense[indices[u]] += values[u], in place
//
// Contributions are sorted stably by row (radix sort) and summed segment by segment in the accumulator's dtype, in an
// order that depends on the contributions alone: no atomics, the same bits on any number of threads.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

struct RowStepArgs;  // embedding_step.h

struct SumRowsArgs {
  const void* rows;  // (size,) in [0, limit)
  Dtype row_dtype;
  std::int64_t size;
  std::int64_t limit;
  std::int64_t skip = -1;  // contributions to this row are left out

  // Contribution i adds the row of source that is the place (bag_order.h) of its bag b: offsets[b] <= i < offsets[b +
  // 1], or i / length without.
  const void* source;  // (bags, width), contiguous
  Dtype dtype;
  std::int64_t width;
  std::int64_t bags;
  std::int64_t length = 1;
  const std::int64_t* offsets = nullptr;  // (bags + 1,)
  std::int64_t lists = 1;                 // of bags

  // At most one of these.
  const void* scale = nullptr;      // (size,) of dtype: factor of contribution i
  const void* bag_scale = nullptr;  // (bags,) accumulators: factor of each row of source
  const void* argmax = nullptr;     // (bags, width) accumulators: an element counts where this is i's place in its bag;
                                    // of one list

  Device device = {};  // where all of this lies

  // Called once the number of distinct rows is known; sets values, and indices for a sparse result.
  void (*allocate)(SumRowsArgs& args, std::int64_t unique);
  void* context;
  bool dense;  // values is (limit, width), and all of it is written; (unique, width) otherwise
  void* values = nullptr;
  std::int64_t* indices = nullptr;  // (unique,)

  // In place of a result: a step of an optimizer that every sum goes into.
  const RowStepArgs* step = nullptr;
};

struct AddRowsArgs {
  void* dense;  // (rows, width) contiguous
  const std::int64_t* indices;
  const void* values;  // (size, width) contiguous
  std::int64_t size, width;
  Dtype dtype;
};

struct InspectRowsArgs {
  const void* indices;
  Dtype dtype;
  std::int64_t size, limit;
  bool full = false;

  // Found, -1 for none:
  std::int64_t outside = -1;   // the place of the first index outside [0, limit)
  std::int64_t disorder = -1;  // where full: the first place whose index is not above the one before it
  std::int64_t largest = -1;   // where full: the largest index
};

namespace ops {

// Throws IndexError naming the first index outside [0, limit), and TypeError unless int32 or int64. Gives the
// indices, contiguous.
Tensor check_indices(const char* op, const char* name, const Tensor& indices, std::int64_t limit);
// The dtype alone, for kernels that check what they read.
Tensor take_indices(const char* op, const char* name, const Tensor& indices);
// For what they found: throws as check_indices does.
[[noreturn]] void refuse_indices(const char* op, const char* name, const Tensor& indices, std::int64_t limit);
// As check_indices, and ascending and unique, int64, one dimension.
Tensor check_sorted_rows(const char* op, const char* name, const Tensor& indices, std::int64_t limit);

// Runs sum_rows with args that lack the result: a step, ...
void sum_rows_step(SumRowsArgs args, const RowStepArgs& step);
// ... the dense (limit, width), ...
Tensor sum_rows_dense(SumRowsArgs args);
// ... or (indices, values).
std::pair<Tensor, Tensor> sum_rows_sparse(SumRowsArgs args);

// indices[k] (U_k,) int64, not negative, in any order, values[k] (U_k, D) of one float dtype.
std::pair<Tensor, Tensor> merge_rows(const std::vector<Tensor>& indices, const std::vector<Tensor>& values);
// dense (V, D) of a float dtype.
void add_rows(const Tensor& dense, const Tensor& indices, const Tensor& values);

}  // namespace ops

namespace cpu {
template <Isa>
void sum_rows(SumRowsArgs& args);
template <Isa>
void add_rows(const AddRowsArgs& args);
template <Isa>
void inspect_rows(InspectRowsArgs& args);
}  // namespace cpu

namespace cuda {
void sum_rows(SumRowsArgs& args, Stream stream);
void add_rows(const AddRowsArgs& args, Stream stream);
void inspect_rows(InspectRowsArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
