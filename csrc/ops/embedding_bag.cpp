#include "ops/embedding_bag.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/embedding.h"
#include "ops/embedding_step.h"
#include "ops/fill.h"
#include "ops/index_range.h"
#include "ops/sparse_rows.h"
#include "ops/table_rows.h"

namespace drupe::ops {
namespace {

BagMode parse_mode(const char* op, const std::string& mode) {
  if (mode == "sum") return BagMode::sum;
  if (mode == "mean") return BagMode::mean;
  if (mode == "max") return BagMode::max;
  fail(op, "mode is \"", mode, "\": expected sum, mean or max");
}

std::int64_t count_offsets(const char* op, const Tensor& offsets, std::int64_t size) {
  check_type(offsets.dtype() == Dtype::i32 || offsets.dtype() == Dtype::i64, op, "offsets is ", offsets.dtype(),
             ": expected int32 or int64");
  const std::int64_t count = offsets.numel();
  check(count > 0 || size == 0, op, "offsets is empty, but there are ", size, " indices");
  return count;
}

// "(3, D)"
std::string with_columns(const Dims& shape) {
  std::string text = "(";
  for (const std::int64_t extent : shape) text += std::to_string(extent) + ", ";
  return text + "D)";
}

// The bags' extents, checked, unless the kernel does; keeps what they point to.
struct Bags {
  Tensor indices;  // contiguous; rows of weight, but where the kernel has yet to find those of many tables
  Tensor offsets;  // (bags + 1,) int64, where there are offsets; (bags,) where the kernel checks
  std::int64_t count = 0;
  std::int64_t length = 0;
  std::int64_t lists = 1;  // of bags
  Dims shape;              // of the results, but for their columns

  Bags(const char* op, const Tensor& given, const std::optional<Tensor>& begins, std::int64_t rows,
       const BagOptions& options, bool kernel_checks = false) {
    const bool many = !options.tables.empty();
    if (begins) common_device(op, {&given, &*begins});
    if (many) {
      read_tables(op, given, begins, rows, options);
    } else {
      indices = kernel_checks ? take_indices(op, "indices", given) : check_indices(op, "indices", given, rows);
      read_layout(op, given, begins);
    }
    if (begins && kernel_checks) {
      count_offsets(op, *begins, given.numel());
      offsets = cast(contiguous(*begins), Dtype::i64);
    } else if (begins) {
      const BagOffsets read = read_offsets(op, *begins, given.numel());
      offsets = read.begins;
      too_long_ = read.too_long;
    }
    if (!many) return;
    if (!kernel_checks) {
      indices = rows_of_tables(op, "indices", given, offsets, tables_);
      return;
    }
    indices = take_indices(op, "indices", given);
    tables_.ids = indices.raw();
    tables_.id_dtype = indices.dtype();
    tables_.size = indices.numel();
    tables_.offsets = offsets.defined() ? offsets.data<std::int64_t>() : nullptr;
    kernel_finds_rows_ = true;
  }

  // Fills what kernels for the forward pass read.
  void describe(EmbeddingBagArgs& args) const {
    args.indices = indices.raw();
    args.index_dtype = indices.dtype();
    args.size = indices.numel();
    args.bags = count;
    args.length = length;
    args.offsets = offsets.defined() ? offsets.data<std::int64_t>() : nullptr;
    args.lists = lists;
    args.tables = kernel_finds_rows_ ? &tables_ : nullptr;
  }

  // Bags may hold as many as the argmax counts.
  void check_lengths(const char* op) const {
    const std::int64_t bag = offsets.defined() ? too_long_ : count > 0 && length > kLongestMaxBag ? 0 : -1;
    if (bag < 0) return;
    const std::int64_t here = offsets.defined() ? index_at(offsets, bag + 1) - index_at(offsets, bag) : length;
    fail(op, "bag ", bag, " has ", here, " indices: mode max with gradients takes ", kLongestMaxBag);
  }

 private:
  std::int64_t too_long_ = -1;
  std::vector<std::int64_t> starts_;
  TableRowsArgs tables_;
  bool kernel_finds_rows_ = false;

  void read_layout(const char* op, const Tensor& given, const std::optional<Tensor>& begins) {
    if (begins) {
      check(given.ndim() == 1, op, "indices is ", given.shape(), ": expected (N,) beside offsets");
      check(begins->ndim() == 1, op, "offsets is ", begins->shape(), ": expected 1 dimension");
      count = begins->numel();
    } else {
      check(given.ndim() == 2, op, "indices is ", given.shape(), ": expected (B, L), or (N,) and offsets");
      count = given.size(0);
      length = given.size(1);
    }
    shape = {count};
  }

  void read_tables(const char* op, const Tensor& given, const std::optional<Tensor>& begins, std::int64_t rows,
                   const BagOptions& options) {
    check(options.mode != "max", op, "mode max takes one table");
    check(!options.padding_idx, op, "padding_idx is a row of one table: there are tables");
    starts_ = table_starts(op, options.tables);
    check(starts_.back() == rows, op, "tables have ", starts_.back(), " rows together, weight has ", rows);
    tables_ = describe_tables(op, "indices", given, begins, starts_);
    if (begins) lists = tables_.tables;
    length = tables_.length;
    shape = {begins ? begins->size(1) : given.size(0), tables_.tables};
    count = shape[0] * shape[1];
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
  const Bags bags(op, indices, offsets, num_rows, options);
  Dims leading = dy.shape();
  if (!leading.empty()) leading.pop_back();
  check(dy.ndim() > 0 && leading == bags.shape, op, "dy is ", dy.shape(), ": expected ", with_columns(bags.shape));
  const Tensor source = contiguous(dy);
  SumRowsArgs args{.rows = bags.indices.raw(),
                   .row_dtype = bags.indices.dtype(),
                   .size = bags.indices.numel(),
                   .limit = num_rows,
                   .skip = normalize_padding(op, options.padding_idx, num_rows),
                   .source = source.raw(),
                   .dtype = source.dtype(),
                   .width = source.size(-1),
                   .bags = bags.count,
                   .length = bags.length,
                   .offsets = bags.offsets.defined() ? bags.offsets.data<std::int64_t>() : nullptr,
                   .lists = bags.lists,
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

BagOffsets read_offsets(const char* op, const Tensor& offsets, std::int64_t size) {
  const std::int64_t count = count_offsets(op, offsets, size);
  const Tensor begins = empty({count + 1}, Dtype::i64, offsets.device());
  copy_into(begins.slice(0, count, count + 1, 1), full({1}, size, Dtype::i64, offsets.device()));
  if (count == 0) return {begins};
  copy_into(begins.slice(0, 0, count, 1), reshape(offsets, {count}));
  InspectBagsArgs args{.offsets = begins.data<std::int64_t>(), .bags = count, .longest = kLongestMaxBag};
  dispatch(
      offsets.device(), [&]<Isa I>() { cpu::inspect_bags<I>(args); },
      [&](auto stream) { cuda::inspect_bags(args, stream); });
  check(args.first == 0, op, "offsets", subscript(0, offsets.shape()), " is ", args.first, ": expected 0");
  if (const std::int64_t b = args.decrease; b >= 0) {
    const std::string before = subscript(b - 1, offsets.shape());
    check(b < count, op, "offsets", before, " is ", index_at(begins, b - 1), ": there are only ", size, " indices");
    fail(op, "offsets", subscript(b, offsets.shape()), " is ", index_at(begins, b), " after ", index_at(begins, b - 1),
         ": expected no decrease");
  }
  return {begins, args.too_long};
}

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
  const Bags bags(op, indices, offsets, weight.size(0), options, kernel_checks);
  bags.describe(args);
  args.skip = normalize_padding(op, options.padding_idx, weight.size(0));
  args.limit = weight.size(0);
  if (scale) {
    factors = check_scale(op, *scale, indices, weight.dtype(), args.mode);
    args.scale = factors.raw();
  }
  Dims shape = bags.shape;
  shape.push_back(weight.size(1));
  Tensor y = empty(shape, weight.dtype(), device);
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
    const Bags wrong(op, indices, offsets, weight.size(0), options);  // throws
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
  const Bags bags(op, indices, offsets, weight.size(0), options);
  bags.describe(args.bag);
  args.bag.skip = normalize_padding(op, options.padding_idx, weight.size(0));
  check_type(dy.dtype() == weight.dtype(), op, "dy is ", dy.dtype(), ", weight is ", weight.dtype());
  Dims shape = bags.shape;
  shape.push_back(weight.size(1));
  check(dy.shape() == shape, op, "dy is ", dy.shape(), ": expected ", shape);
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
