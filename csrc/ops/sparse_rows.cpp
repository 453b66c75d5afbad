#include "ops/sparse_rows.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/check.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

// "[3, 5]": where the position-th element of a tensor of this shape is.
std::string subscript(std::int64_t position, const Dims& shape) {
  std::string text = "]";
  for (int i = shape.size() - 1; i >= 0; --i) {
    text = (i ? ", " : "[") + std::to_string(position % shape[i]) + text;
    position /= shape[i];
  }
  return shape.empty() ? "" : text;
}

std::int64_t index_at(const Tensor& indices, std::int64_t i) {
  return indices.dtype() == Dtype::i32 ? indices.data<std::int32_t>()[i] : indices.data<std::int64_t>()[i];
}

struct SparseResult {
  Tensor indices, values;
};

void allocate_sparse(SumRowsArgs& args, std::int64_t unique) {
  auto& result = *static_cast<SparseResult*>(args.context);
  result.indices = empty({unique}, Dtype::i64);
  result.values = empty({unique, args.width}, args.dtype);
  args.indices = result.indices.data<std::int64_t>();
  args.values = result.values.raw();
}

void allocate_dense(SumRowsArgs& args, std::int64_t) {
  auto& result = *static_cast<Tensor*>(args.context);
  result = empty({args.limit, args.width}, args.dtype);
  args.values = result.raw();
}

}  // namespace

Tensor check_indices(const char* op, const char* name, const Tensor& indices, std::int64_t limit) {
  check_type(indices.dtype() == Dtype::i32 || indices.dtype() == Dtype::i64, op, name, " is ", indices.dtype(),
             ": expected int32 or int64");
  const Tensor flat = contiguous(indices);
  FindOutsideArgs args{.indices = flat.raw(), .dtype = flat.dtype(), .size = flat.numel(), .limit = limit};
  dispatch_isa([&]<Isa I>() { cpu::find_outside<I>(args); });
  if (args.position >= 0) {
    fail<std::out_of_range>(op, name, subscript(args.position, indices.shape()), " is ", index_at(flat, args.position),
                            ": the table has ", limit, " rows");
  }
  return flat;
}

Tensor check_sorted_rows(const char* op, const char* name, const Tensor& indices, std::int64_t limit) {
  check_type(indices.dtype() == Dtype::i64, op, name, " is ", indices.dtype(), ": expected int64");
  check(indices.ndim() == 1, op, name, " is ", indices.shape(), ": expected 1 dimension");
  const Tensor rows = check_indices(op, name, indices, limit);
  const auto* row = rows.data<std::int64_t>();
  for (std::int64_t i = 1; i < rows.numel(); ++i) {
    check(row[i - 1] < row[i], op, name, "[", i, "] is ", row[i], " after ", row[i - 1],
          ": expected ascending rows without duplicates");
  }
  return rows;
}

Tensor sum_rows_dense(SumRowsArgs args) {
  Tensor result;
  args.dense = true;
  args.allocate = &allocate_dense;
  args.context = &result;
  dispatch_isa([&]<Isa I>() { cpu::sum_rows<I>(args); });
  return result;
}

std::pair<Tensor, Tensor> sum_rows_sparse(SumRowsArgs args) {
  SparseResult result;
  args.dense = false;
  args.allocate = &allocate_sparse;
  args.context = &result;
  dispatch_isa([&]<Isa I>() { cpu::sum_rows<I>(args); });
  return {result.indices, result.values};
}

std::pair<Tensor, Tensor> merge_rows(const std::vector<Tensor>& indices, const std::vector<Tensor>& values) {
  const char* op = "merge_rows";
  check(!values.empty() && indices.size() == values.size(), op, indices.size(), " lists of indices, ", values.size(),
        " of values: expected as many, and at least one");
  const Tensor& first = values[0];
  check_type(is_float(first.dtype()), op, "values[0] is ", first.dtype(), ": expected a float dtype");
  std::int64_t total = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    check_type(indices[k].dtype() == Dtype::i64, op, "indices[", k, "] is ", indices[k].dtype(), ": expected int64");
    check_type(values[k].dtype() == first.dtype(), op, "values[0] is ", first.dtype(), ", values[", k, "] is ",
               values[k].dtype());
    check(indices[k].ndim() == 1 && values[k].ndim() == 2 && values[k].size(0) == indices[k].numel() &&
              values[k].size(1) == first.size(-1),
          op, "indices[", k, "] is ", indices[k].shape(), ", values[", k, "] is ", values[k].shape(),
          ": expected (U,) and (U, ", first.size(-1), ")");
    common_device(op, {&first, &indices[k], &values[k]});
    total += indices[k].numel();
  }
  const Tensor rows = empty({total}, Dtype::i64);
  const Tensor source = empty({total, first.size(1)}, first.dtype());
  std::int64_t at = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    const std::int64_t next = at + indices[k].numel();
    if (next == at) continue;
    copy_into(rows.slice(0, at, next, 1), indices[k]);
    copy_into(source.slice(0, at, next, 1), values[k]);
    at = next;
  }
  check_indices(op, "indices", rows, std::numeric_limits<std::int64_t>::max());
  std::int64_t limit = 0;
  for (std::int64_t i = 0; i < total; ++i) limit = std::max(limit, rows.data<std::int64_t>()[i] + 1);
  return sum_rows_sparse({.rows = rows.raw(),
                          .row_dtype = Dtype::i64,
                          .size = total,
                          .limit = limit,
                          .source = source.raw(),
                          .dtype = first.dtype(),
                          .width = first.size(1),
                          .bags = total,
                          .allocate = nullptr,
                          .context = nullptr,
                          .dense = false});
}

void add_rows(const Tensor& dense, const Tensor& indices, const Tensor& values) {
  const char* op = "add_rows";
  check_type(is_float(dense.dtype()) && dense.dtype() == values.dtype(), op, "dense is ", dense.dtype(), ", values is ",
             values.dtype(), ": expected one float dtype");
  check(dense.ndim() == 2, op, "dense is ", dense.shape(), ": expected 2 dimensions");
  check(indices.ndim() == 1 && values.shape() == (Dims{indices.numel(), dense.size(1)}), op, "dense is ", dense.shape(),
        ", indices is ", indices.shape(), ", values is ", values.shape());
  check_writable(dense, op, "dense");
  common_device(op, {&dense, &indices, &values});
  const Tensor rows = check_sorted_rows(op, "indices", indices, dense.size(0));
  const Tensor source = contiguous(values);
  const Tensor target = contiguous(dense);
  const AddRowsArgs args{.dense = target.raw(),
                         .indices = rows.data<std::int64_t>(),
                         .values = source.raw(),
                         .size = rows.numel(),
                         .width = dense.size(1),
                         .dtype = dense.dtype()};
  dispatch_isa([&]<Isa I>() { cpu::add_rows<I>(args); });
  if (!dense.is_contiguous()) copy_into(dense, target);
}

}  // namespace drupe::ops
