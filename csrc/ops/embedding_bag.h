// Reductions over bags of a table's rows:  y[b] = reduce over i in bag b of scale[i] weight[indices[i]]
//
//   weight   (V, D) a float dtype; rows with any stride (others are copied)
//   indices  (N,) with offsets (B,): bag b is [offsets[b], offsets[b + 1]), the last goes to N; or (B, L): bag b is row
//   b.
//            int32 or int64, in [0, V): IndexError otherwise
//   offsets  int32 or int64, offsets[0] = 0, ascending, at most N
//   scale    of indices' shape and weight's dtype: mode sum only
//   y        (B, D); the rows add up in their order, in the accumulator's dtype
//
// Or T tables lie one after another in weight, and indices count in their own (table_rows.h): (B, T), bags of one, or
// (B, T, L); or (N,) beside offsets (T, B). y is (B, T, D) then; modes sum and mean, no padding_idx.
//
// Modes: sum, mean, max (elementwise; NaN wins; the first of equals gets the gradient). Rows padding_idx are left out
// as if they were not in the bag; a bag with nothing in it gives zeros.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

struct TableRowsArgs;

enum class BagMode : std::uint8_t { sum, mean, max };

struct EmbeddingBagArgs {
  const void* weight;
  std::int64_t row_stride;  // elements
  Dtype dtype;
  std::int64_t width;
  const void* indices;
  Dtype index_dtype;
  std::int64_t size;
  std::int64_t bags;
  std::int64_t length = 0;                // of every bag, without offsets
  const std::int64_t* offsets = nullptr;  // (bags + 1,), of which kernels for the CPU leave the last alone
  std::int64_t lists = 1;                 // of bags (bag_order.h)
  std::int64_t limit = 0;                 // rows of the table
  const TableRowsArgs* tables = nullptr;  // for the CPU: where indices count in tables of their own
  std::int64_t first = 0;                 // the position of the first of indices
  const void* scale = nullptr;            // (size,)
  std::int64_t skip = -1;
  BagMode mode = BagMode::sum;
  void* y = nullptr;
  void* argmax = nullptr;     // (bags, width) accumulators: the place in the bag of each maximum; -1 for none
  void* bag_scale = nullptr;  // (bags,) accumulators: 1 / how many rows count, 0 for none
};

// dscale[i] = dy[bag of i] . weight[indices[i]]
struct BagScaleArgs {
  EmbeddingBagArgs bag;
  const void* dy;  // as y, contiguous
  void* dscale;    // (size,)
};

struct InspectBagsArgs {
  const std::int64_t* offsets;  // (bags + 1,)
  std::int64_t bags;
  std::int64_t longest;

  // Found, -1 for none:
  std::int64_t first = -1;     // offsets[0]
  std::int64_t decrease = -1;  // the first place whose offset is below the one before it
  std::int64_t too_long = -1;  // the first bag with more than `longest`
};

// The argmax is kept as a float: bags may hold as many as float counts exactly.
inline constexpr std::int64_t kLongestMaxBag = std::int64_t{1} << 24;

namespace ops {

struct BagOptions {
  std::string mode = "sum";
  std::optional<std::int64_t> padding_idx;
  std::vector<std::int64_t> tables;  // how many rows each has; empty where indices count in weight
};

// Offsets of bags of `size` indices, checked: (bags + 1,) int64 with `size` as the last; and the first bag of more than
// kLongestMaxBag, or -1.
struct BagOffsets {
  Tensor begins;
  std::int64_t too_long = -1;
};
BagOffsets read_offsets(const char* op, const Tensor& offsets, std::int64_t size);

// (y, argmax); the second is defined for mode max with keep_argmax.
std::pair<Tensor, Tensor> embedding_bag(const Tensor& weight, const Tensor& indices,
                                        const std::optional<Tensor>& offsets, const std::optional<Tensor>& scale,
                                        const BagOptions& options, bool keep_argmax);
// (num_rows, D)
Tensor embedding_bag_backward(const Tensor& dy, const Tensor& indices, const std::optional<Tensor>& offsets,
                              const std::optional<Tensor>& scale, const std::optional<Tensor>& argmax,
                              std::int64_t num_rows, const BagOptions& options);
// (rows (U,), values (U, D))
std::pair<Tensor, Tensor> embedding_bag_backward_sparse(const Tensor& dy, const Tensor& indices,
                                                        const std::optional<Tensor>& offsets,
                                                        const std::optional<Tensor>& scale,
                                                        const std::optional<Tensor>& argmax, std::int64_t num_rows,
                                                        const BagOptions& options);
// d(scale), of indices' shape.
Tensor embedding_bag_backward_scale(const Tensor& dy, const Tensor& weight, const Tensor& indices,
                                    const std::optional<Tensor>& offsets, const BagOptions& options);

}  // namespace ops

namespace cpu {
// Checks the indices and offsets task by task, while they are in cache. False if any is out of range: then y is not
// complete.
template <Isa>
bool embedding_bag(const EmbeddingBagArgs& args);
// Fills args.bag_scale alone.
template <Isa>
void embedding_bag_counts(const EmbeddingBagArgs& args);
template <Isa>
void embedding_bag_backward_scale(const BagScaleArgs& args);
template <Isa>
void inspect_bags(InspectBagsArgs& args);
}  // namespace cpu

namespace cuda {
void embedding_bag(const EmbeddingBagArgs& args, Stream stream);
void embedding_bag_counts(const EmbeddingBagArgs& args, Stream stream);
void embedding_bag_backward_scale(const BagScaleArgs& args, Stream stream);
void inspect_bags(InspectBagsArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
