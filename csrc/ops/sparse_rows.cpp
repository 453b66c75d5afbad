#include "ops/sparse_rows.h"

#include <limits>
#include <string>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/index_range.h"

namespace drupe::ops {
namespace {

void check_dtype(const char* op, const char* name, const Tensor& indices) {
  check_type(indices.dtype() == Dtype::i32 || indices.dtype() == Dtype::i64, op, name, " is ", indices.dtype(),
             ": expected int32 or int64");
}

[[noreturn]] void refuse_index(const char* op, const char* name, std::int64_t position, const Dims& shape,
                               std::int64_t index, std::int64_t limit) {
  fail<std::out_of_range>(op, name, subscript(position, shape), " is ", index, ": the table has ", limit, " rows");
}

// What check_indices gives while a graph is captured, which then does the checking.
Tensor defer_check(const char* op, const char* name, const Tensor& indices, std::int64_t limit) {
  check_dtype(op, name, indices);
  check_index(limit > 0 || indices.numel() == 0, op, name, " is ", indices.shape(), ": the table has 0 rows");
  const auto raise = [op, name = std::string(name), shape = indices.shape(), limit](std::int64_t index,
                                                                                    std::int64_t position) {
    refuse_index(op, name.c_str(), position, shape, index, limit);
  };
  return defer_range_check(contiguous(indices), limit, {}, raise);
}

// The indices, contiguous, and what there is to know about them; none is outside [0, limit).
std::pair<Tensor, InspectRowsArgs> inspect(const char* op, const char* name, const Tensor& indices, std::int64_t limit,
                                           bool full) {
  const Tensor flat = take_indices(op, name, indices);
  InspectRowsArgs args{
      .indices = flat.raw(), .dtype = flat.dtype(), .size = flat.numel(), .limit = limit, .full = full};
  if (args.size > 0) {
    dispatch(
        flat.device(), [&]<Isa I>() { cpu::inspect_rows<I>(args); },
        [&](auto stream) { cuda::inspect_rows(args, stream); });
  }
  if (args.outside >= 0) {
    refuse_index(op, name, args.outside, indices.shape(), index_at(flat, args.outside), limit);
  }
  return {flat, args};
}

struct SparseResult {
  Tensor indices, values;
};

void allocate_sparse(SumRowsArgs& args, std::int64_t unique) {
  auto& result = *static_cast<SparseResult*>(args.context);
  result.indices = empty({unique}, Dtype::i64, args.device);
  result.values = empty({unique, args.width}, args.dtype, args.device);
  args.indices = result.indices.data<std::int64_t>();
  args.values = result.values.raw();
}

void allocate_dense(SumRowsArgs& args, std::int64_t) {
  auto& result = *static_cast<Tensor*>(args.context);
  result = empty({args.limit, args.width}, args.dtype, args.device);
  args.values = result.raw();
}

void run(SumRowsArgs& args) {
  dispatch(args.device, [&]<Isa I>() { cpu::sum_rows<I>(args); }, [&](auto stream) { cuda::sum_rows(args, stream); });
}

}  // namespace

Tensor check_indices(const char* op, const char* name, const Tensor& indices, std::int64_t limit) {
  if (cuda::is_capturing(indices.device())) return defer_check(op, name, indices, limit);
  return inspect(op, name, indices, limit, false).first;
}

Tensor take_indices(const char* op, const char* name, const Tensor& indices) {
  check_dtype(op, name, indices);
  return contiguous(indices);
}

void refuse_indices(const char* op, const char* name, const Tensor& indices, std::int64_t limit) {
  check_indices(op, name, indices, limit);
  fail(op, name, " changed while they were read");
}

Tensor check_sorted_rows(const char* op, const char* name, const Tensor& indices, std::int64_t limit) {
  check_type(indices.dtype() == Dtype::i64, op, name, " is ", indices.dtype(), ": expected int64");
  check(indices.ndim() == 1, op, name, " is ", indices.shape(), ": expected 1 dimension");
  const auto [rows, found] = inspect(op, name, indices, limit, true);
  if (const std::int64_t i = found.disorder; i >= 0) {
    fail(op, name, "[", i, "] is ", index_at(rows, i), " after ", index_at(rows, i - 1),
         ": expected ascending rows without duplicates");
  }
  return rows;
}

void sum_rows_step(SumRowsArgs args, const RowStepArgs& step) {
  if (args.size == 0 || args.width == 0) return;
  args.dense = false;
  args.step = &step;
  run(args);
}

Tensor sum_rows_dense(SumRowsArgs args) {
  Tensor result;
  args.dense = true;
  args.allocate = &allocate_dense;
  args.context = &result;
  run(args);
  return result;
}

std::pair<Tensor, Tensor> sum_rows_sparse(SumRowsArgs args) {
  if (cuda::is_capturing(args.device)) {
    fail<std::runtime_error>("sum_rows", "a gradient of rows alone has a size that the host must know: while a graph ",
                             "is captured it must be dense");
  }
  SparseResult result;
  args.dense = false;
  args.allocate = &allocate_sparse;
  args.context = &result;
  run(args);
  return {result.indices, result.values};
}

std::pair<Tensor, Tensor> merge_rows(const std::vector<Tensor>& indices, const std::vector<Tensor>& values) {
  const char* op = "merge_rows";
  check(!values.empty() && indices.size() == values.size(), op, indices.size(), " lists of indices, ", values.size(),
        " of values: expected as many, and at least one");
  const Tensor& first = values[0];
  check_type(is_float(first.dtype()), op, "values[0] is ", first.dtype(), ": expected a float dtype");
  std::int64_t total = 0;
  Device device;
  for (std::size_t k = 0; k < values.size(); ++k) {
    check_type(indices[k].dtype() == Dtype::i64, op, "indices[", k, "] is ", indices[k].dtype(), ": expected int64");
    check_type(values[k].dtype() == first.dtype(), op, "values[0] is ", first.dtype(), ", values[", k, "] is ",
               values[k].dtype());
    check(indices[k].ndim() == 1 && values[k].ndim() == 2 && values[k].size(0) == indices[k].numel() &&
              values[k].size(1) == first.size(-1),
          op, "indices[", k, "] is ", indices[k].shape(), ", values[", k, "] is ", values[k].shape(),
          ": expected (U,) and (U, ", first.size(-1), ")");
    device = common_device(op, {&first, &indices[k], &values[k]});
    total += indices[k].numel();
  }
  const Tensor rows = empty({total}, Dtype::i64, device);
  const Tensor source = empty({total, first.size(1)}, first.dtype(), device);
  std::int64_t at = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    const std::int64_t next = at + indices[k].numel();
    if (next == at) continue;
    copy_into(rows.slice(0, at, next, 1), indices[k]);
    copy_into(source.slice(0, at, next, 1), values[k]);
    at = next;
  }
  const auto found = inspect(op, "indices", rows, std::numeric_limits<std::int64_t>::max(), true).second;
  return sum_rows_sparse({.rows = rows.raw(),
                          .row_dtype = Dtype::i64,
                          .size = total,
                          .limit = found.largest + 1,
                          .source = source.raw(),
                          .dtype = first.dtype(),
                          .width = first.size(1),
                          .bags = total,
                          .device = device,
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
  const Device device = common_device(op, {&dense, &indices, &values});
  const Tensor rows = check_sorted_rows(op, "indices", indices, dense.size(0));
  const Tensor source = contiguous(values);
  const Tensor target = contiguous(dense);
  const AddRowsArgs args{.dense = target.raw(),
                         .indices = rows.data<std::int64_t>(),
                         .values = source.raw(),
                         .size = rows.numel(),
                         .width = dense.size(1),
                         .dtype = dense.dtype()};
  dispatch(device, [&]<Isa I>() { cpu::add_rows<I>(args); }, [&](auto stream) { cuda::add_rows(args, stream); });
  if (!dense.is_contiguous()) copy_into(dense, target);
}

}  // namespace drupe::ops
