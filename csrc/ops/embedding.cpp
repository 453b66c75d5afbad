#include "ops/embedding.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/embedding_step.h"
#include "ops/sparse_rows.h"

namespace drupe::ops {
namespace {

template <class Run>
auto backward(const char* op, const Tensor& dy, const Tensor& indices, std::int64_t num_rows,
              const std::optional<std::int64_t>& padding_idx, Run run) {
  check_type(is_float(dy.dtype()), op, "dy is ", dy.dtype(), ": expected a float dtype");
  check(num_rows >= 0, op, "num_rows is ", num_rows);
  const Device device = common_device(op, {&dy, &indices});
  Dims leading = dy.shape();
  check(!leading.empty(), op, "dy has no dimensions");
  leading.pop_back();
  check(leading == indices.shape(), op, "dy is ", dy.shape(), ", indices is ", indices.shape());
  const Tensor rows = check_indices(op, "indices", indices, num_rows);
  const Tensor source = contiguous(dy);
  return run(SumRowsArgs{.rows = rows.raw(),
                         .row_dtype = rows.dtype(),
                         .size = rows.numel(),
                         .limit = num_rows,
                         .skip = normalize_padding(op, padding_idx, num_rows),
                         .source = source.raw(),
                         .dtype = source.dtype(),
                         .width = source.size(-1),
                         .bags = rows.numel(),
                         .device = device,
                         .allocate = nullptr,
                         .context = nullptr,
                         .dense = false});
}

}  // namespace

std::int64_t normalize_padding(const char* op, const std::optional<std::int64_t>& padding_idx, std::int64_t rows) {
  if (!padding_idx) return -1;
  check_index(*padding_idx >= -rows && *padding_idx < rows, op, "padding_idx is ", *padding_idx, ": the table has ",
              rows, " rows");
  return *padding_idx < 0 ? *padding_idx + rows : *padding_idx;
}

Tensor embedding(const Tensor& weight, const Tensor& indices, const std::optional<std::int64_t>& padding_idx) {
  const char* op = "embedding";
  check(weight.ndim() == 2, op, "weight is ", weight.shape(), ": expected 2 dimensions");
  const Device device = common_device(op, {&weight, &indices});
  const bool kernel_checks = device.type == DeviceType::cpu && weight.size(1) > 0;
  const Tensor rows =
      kernel_checks ? take_indices(op, "indices", indices) : check_indices(op, "indices", indices, weight.size(0));
  normalize_padding(op, padding_idx, weight.size(0));
  const Tensor table = weight.size(1) <= 1 || weight.stride(1) == 1 ? weight : contiguous(weight);
  Dims shape = indices.shape();
  shape.push_back(weight.size(1));
  Tensor y = empty(shape, weight.dtype(), device);
  const auto item = static_cast<std::int64_t>(size_of(weight.dtype()));
  const EmbeddingArgs args{.weight = table.raw(),
                           .row_stride_bytes = table.stride(0) * item,
                           .row_bytes = table.size(1) * item,
                           .indices = rows.raw(),
                           .index_dtype = rows.dtype(),
                           .size = rows.numel(),
                           .limit = weight.size(0),
                           .y = y.raw()};
  if (y.numel() == 0) return y;
  bool complete = true;
  dispatch(
      device, [&]<Isa I>() { complete = cpu::embedding<I>(args); },
      [&](auto stream) { cuda::embedding(args, stream); });
  if (!complete) refuse_indices(op, "indices", indices, weight.size(0));
  return y;
}

Tensor embedding_backward(const Tensor& dy, const Tensor& indices, std::int64_t num_rows,
                          const std::optional<std::int64_t>& padding_idx) {
  return backward("embedding_backward", dy, indices, num_rows, padding_idx, &sum_rows_dense);
}

std::pair<Tensor, Tensor> embedding_backward_sparse(const Tensor& dy, const Tensor& indices, std::int64_t num_rows,
                                                    const std::optional<std::int64_t>& padding_idx) {
  return backward("embedding_backward", dy, indices, num_rows, padding_idx, &sum_rows_sparse);
}

void embedding_step(const Tensor& weight, const Tensor& dy, const Tensor& indices, const std::vector<Tensor>& states,
                    const std::optional<std::int64_t>& padding_idx, const RowStepOptions& options) {
  const char* op = "embedding_step";
  const RowStepArgs step = describe_row_step(op, weight, dy, states, options);
  backward(op, dy, indices, weight.size(0), padding_idx, [&](const SumRowsArgs& sums) { sum_rows_step(sums, step); });
}

}  // namespace drupe::ops
