#include "ops/embedding_bag.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/embedding.h"
#include "ops/embedding_step.h"
#include "ops/fill.h"
#include "ops/sparse_rows.h"

namespace drupe::ops {
namespace {

BagMode parse_mode(const char* op, const std::string& mode) {
  if (mode == "sum") return BagMode::sum;
  if (mode == "mean") return BagMode::mean;
  if (mode == "max") return BagMode::max;
  fail(op, "mode is \"", mode, "\": expected sum, mean or max");
}

// The bags' extents, checked, unless the kernel does; keeps what they point to.
struct Bags {
  Tensor indices;  // contiguous
  Tensor offsets;  // (bags + 1,) int64, where there are offsets; (bags,) where the kernel checks
  std::int64_t count = 0;
  std::int64_t length = 0;

  Bags(const char* op, const Tensor& given, const std::optional<Tensor>& starts, std::int64_t rows,
       bool kernel_checks = false)
      : indices(kernel_checks ? take_indices(op, "indices", given) : check_indices(op, "indices", given, rows)) {
    if (!starts) {
      check(given.ndim() == 2, op, "indices is ", given.shape(), ": expected (B, L), or (N,) and offsets");
      count = given.size(0);
      length = given.size(1);
      return;
    }
    check(given.ndim() == 1, op, "indices is ", given.shape(), ": expected (N,) beside offsets");
    check_type(starts->dtype() == Dtype::i32 || starts->dtype() == Dtype::i64, op, "offsets is ", starts->dtype(),
               ": expected int32 or int64");
    check(starts->ndim() == 1, op, "offsets is ", starts->shape(), ": expected 1 dimension");
    common_device(op, {&given, &*starts});
    count = starts->numel();
    check(count > 0 || indices.numel() == 0, op, "offsets is empty, but there are ", indices.numel(), " indices");
    if (kernel_checks) {
      offsets = cast(contiguous(*starts), Dtype::i64);
    } else {
      read_offsets(op, *starts);
    }
  }

  // Fills what kernels for the forward pass read.
  void describe(EmbeddingBagArgs& args) const {
    args.indices = indices.raw();
    args.index_dtype = indices.dtype();
    args.size = indices.numel();
    args.bags = count;
    args.length = length;
    args.offsets = offsets.defined() ? offsets.data<std::int64_t>() : nullptr;
  }

  // Bags may hold as many as the argmax counts.
  void check_lengths(const char* op) const {
    const std::int64_t bag = offsets.defined() ? too_long : count > 0 && length > kLongestMaxBag ? 0 : -1;
    if (bag < 0) return;
    const std::int64_t here = offsets.defined() ? offset_at(bag + 1) - offset_at(bag) : length;
    fail(op, "bag ", bag, " has ", here, " indices: mode max with gradients takes ", kLongestMaxBag);
  }

 private:
  std::int64_t too_long = -1;

  // For a message.
  std::int64_t offset_at(std::int64_t bag) const {
    return *to_device(offsets.slice(0, bag, bag + 1, 1), Device{}).data<std::int64_t>();
  }

  void read_offsets(const char* op, const Tensor& starts) {
    const std::int64_t size = indices.numel();
    offsets = empty({count + 1}, Dtype::i64, indices.device());
    copy_into(offsets.slice(0, count, count + 1, 1), full({1}, size, Dtype::i64, indices.device()));
    if (count == 0) return;
    copy_into(offsets.slice(0, 0, count, 1), starts);
    InspectBagsArgs args{.offsets = offsets.data<std::int64_t>(), .bags = count, .longest = kLongestMaxBag};
    dispatch(
        indices.device(), [&]<Isa I>() { cpu::inspect_bags<I>(args); },
        [&](auto stream) { cuda::inspect_bags(args, stream); });
    check(args.first == 0, op, "offsets[0] is ", args.first, ": expected 0");
    if (const std::int64_t b = args.decrease; b >= 0) {
      check(b < count, op, "offsets[", b - 1, "] is ", offset_at(b - 1), ": there are only ", size, " indices");
      fail(op, "offsets[", b, "] is ", offset_at(b), " after ", offset_at(b - 1), ": expected no decrease");
    }
    too_long = args.too_long;
  }
};

Tensor check_scale(const char* op, const Tensor& scale, const Tensor& indices, Dtype dtype, BagMode mode) {
  check(mode == BagMode::sum, op, "per_sample_weights need mode sum");
  check_type(scale.dtype() == dtype, op, "per_sample_weights is ", scale.dtype(), ": expected ", dtype);
  check(scale.shape() == indices.shape(), op, "per_sample_weights is ", scale.shape(), ", indices is ",
        indices.shape());
  return contiguous(scale);
}

EmbeddingBagArgs describe_table(const char* op, const Tensor& weight, Tensor& table) {
  check_type(is_float(weight.dtype()), op, "weight is ", weight.dtype(), ": expected a float dtype");
  check(weight.ndim() == 2, op, "weight is ", weight.shape(), ": expected 2 dimensions");
  table = weight.size(1) <= 1 || weight.stride(1) == 1 ? weight : contiguous(weight);
  return {.weight = table.raw(),
          .row_stride = table.stride(0),
          .dtype = table.dtype(),
          .width = table.size(1),
          .indices = nullptr,
          .index_dtype = Dtype::i64,
          .size = 0,
          .bags = 0};
}

template <class Run>
auto backward(const char* op, const Tensor& dy, const Tensor& indices, const std::optional<Tensor>& offsets,
              const std::optional<Tensor>& scale, const std::optional<Tensor>& argmax, std::int64_t num_rows,
              const BagOptions& options, Run run) {
  const BagMode mode = parse_mode(op, options.mode);
  check_type(is_float(dy.dtype()), op, "dy is ", dy.dtype(), ": expected a float dtype");
  check(num_rows >= 0, op, "num_rows is ", num_rows);
  const Device device = common_device(
      op, {&dy, &indices, offsets ? &*offsets : nullptr, scale ? &*scale : nullptr, argmax ? &*argmax : nullptr});
  const Bags bags(op, indices, offsets, num_rows);
  check(dy.ndim() == 2 && dy.size(0) == bags.count, op, "dy is ", dy.shape(), ": expected (", bags.count, ", D)");
  const Tensor source = contiguous(dy);
  SumRowsArgs args{.rows = bags.indices.raw(),
                   .row_dtype = bags.indices.dtype(),
                   .size = bags.indices.numel(),
                   .limit = num_rows,
                   .skip = normalize_padding(op, options.padding_idx, num_rows),
                   .source = source.raw(),
                   .dtype = source.dtype(),
                   .width = source.size(1),
                   .bags = bags.count,
                   .length = bags.length,
                   .offsets = bags.offsets.defined() ? bags.offsets.data<std::int64_t>() : nullptr,
                   .device = device,
                   .allocate = nullptr,
                   .context = nullptr,
                   .dense = false};
  const Dtype accumulator = accumulator_of(dy.dtype());
  Tensor kept;
  if (scale) {
    kept = check_scale(op, *scale, indices, dy.dtype(), mode);
    args.scale = kept.raw();
  }
  if (mode == BagMode::mean) {
    kept = empty({bags.count}, accumulator, device);
    EmbeddingBagArgs counts{.weight = nullptr,
                            .row_stride = 0,
                            .dtype = dy.dtype(),
                            .width = 0,
                            .indices = nullptr,
                            .index_dtype = Dtype::i64,
                            .size = 0,
                            .bags = 0,
                            .skip = args.skip,
                            .bag_scale = kept.raw()};
    bags.describe(counts);
    dispatch(
        device, [&]<Isa I>() { cpu::embedding_bag_counts<I>(counts); },
        [&](auto stream) { cuda::embedding_bag_counts(counts, stream); });
    args.bag_scale = kept.raw();
  }
  if (mode == BagMode::max) {
    check(argmax.has_value() && argmax->dtype() == accumulator && argmax->shape() == dy.shape(), op,
          "mode max needs the argmax of the forward pass");
    kept = contiguous(*argmax);
    args.argmax = kept.raw();
  }
  return run(args);
}

}  // namespace

std::pair<Tensor, Tensor> embedding_bag(const Tensor& weight, const Tensor& indices,
                                        const std::optional<Tensor>& offsets, const std::optional<Tensor>& scale,
                                        const BagOptions& options, bool keep_argmax) {
  const char* op = "embedding_bag";
  const Device device =
      common_device(op, {&weight, &indices, offsets ? &*offsets : nullptr, scale ? &*scale : nullptr});
  Tensor table, factors;
  EmbeddingBagArgs args = describe_table(op, weight, table);
  args.mode = parse_mode(op, options.mode);
  const bool kernel_checks = device.type == DeviceType::cpu && args.mode != BagMode::max && weight.size(1) > 0;
  const Bags bags(op, indices, offsets, weight.size(0), kernel_checks);
  bags.describe(args);
  args.skip = normalize_padding(op, options.padding_idx, weight.size(0));
  args.limit = weight.size(0);
  if (scale) {
    factors = check_scale(op, *scale, indices, weight.dtype(), args.mode);
    args.scale = factors.raw();
  }
  Tensor y = empty({bags.count, weight.size(1)}, weight.dtype(), device);
  args.y = y.raw();
  Tensor argmax;
  if (args.mode == BagMode::max && keep_argmax) {
    bags.check_lengths(op);
    argmax = empty(y.shape(), accumulator_of(weight.dtype()), device);
    args.argmax = argmax.raw();
  }
  bool complete = true;
  if (y.numel() > 0) {
    dispatch(
        device, [&]<Isa I>() { complete = cpu::embedding_bag<I>(args); },
        [&](auto stream) { cuda::embedding_bag(args, stream); });
  }
  if (!complete) {
    const Bags wrong(op, indices, offsets, weight.size(0));  // throws
    fail(op, "indices or offsets changed while they were read");
  }
  return {y, argmax};
}

Tensor embedding_bag_backward(const Tensor& dy, const Tensor& indices, const std::optional<Tensor>& offsets,
                              const std::optional<Tensor>& scale, const std::optional<Tensor>& argmax,
                              std::int64_t num_rows, const BagOptions& options) {
  return backward("embedding_bag_backward", dy, indices, offsets, scale, argmax, num_rows, options, &sum_rows_dense);
}

std::pair<Tensor, Tensor> embedding_bag_backward_sparse(const Tensor& dy, const Tensor& indices,
                                                        const std::optional<Tensor>& offsets,
                                                        const std::optional<Tensor>& scale,
                                                        const std::optional<Tensor>& argmax, std::int64_t num_rows,
                                                        const BagOptions& options) {
  return backward("embedding_bag_backward", dy, indices, offsets, scale, argmax, num_rows, options, &sum_rows_sparse);
}

Tensor embedding_bag_backward_scale(const Tensor& dy, const Tensor& weight, const Tensor& indices,
                                    const std::optional<Tensor>& offsets, const BagOptions& options) {
  const char* op = "embedding_bag_backward_scale";
  const Device device = common_device(op, {&dy, &weight, &indices, offsets ? &*offsets : nullptr});
  Tensor table;
  BagScaleArgs args{.bag = describe_table(op, weight, table), .dy = nullptr, .dscale = nullptr};
  const Bags bags(op, indices, offsets, weight.size(0));
  bags.describe(args.bag);
  args.bag.skip = normalize_padding(op, options.padding_idx, weight.size(0));
  check_type(dy.dtype() == weight.dtype(), op, "dy is ", dy.dtype(), ", weight is ", weight.dtype());
  check(dy.shape() == (Dims{bags.count, weight.size(1)}), op, "dy is ", dy.shape(), ": expected (", bags.count, ", ",
        weight.size(1), ")");
  const Tensor gradient = contiguous(dy);
  Tensor dscale = empty(indices.shape(), weight.dtype(), device);
  args.dy = gradient.raw();
  args.dscale = dscale.raw();
  if (dscale.numel() > 0) {
    dispatch(
        device, [&]<Isa I>() { cpu::embedding_bag_backward_scale<I>(args); },
        [&](auto stream) { cuda::embedding_bag_backward_scale(args, stream); });
  }
  return dscale;
}

void embedding_bag_step(const Tensor& weight, const Tensor& dy, const Tensor& indices,
                        const std::optional<Tensor>& offsets, const std::optional<Tensor>& scale,
                        const std::vector<Tensor>& states, const BagOptions& bags, const RowStepOptions& options) {
  const char* op = "embedding_bag_step";
  check(parse_mode(op, bags.mode) != BagMode::max, op, "mode is \"max\": expected sum or mean");
  const RowStepArgs step = describe_row_step(op, weight, dy, states, options);
  backward(op, dy, indices, offsets, scale, std::nullopt, weight.size(0), bags,
           [&](const SumRowsArgs& sums) { sum_rows_step(sums, step); });
}

}  // namespace drupe::ops
