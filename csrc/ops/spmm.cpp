#include "ops/spmm.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/embedding_bag.h"

namespace drupe::ops {
namespace {

// Rows with any stride, whose columns are adjacent.
Tensor in_rows(const Tensor& x) {
  return x.size(1) <= 1 || x.stride(1) == 1 ? x : contiguous(x);
}

// How many rows of `all` are stored.
std::int64_t stored(const char* op, const char* name, const std::optional<RowPlaces>& rows, std::int64_t all,
                    Device device) {
  if (!rows) return all;
  check(rows->all() == all && rows->device() == device, op, "the places of ", name, "'s rows are of ", rows->all(),
        " on ", rows->device(), ": expected ", all, " on ", device);
  return rows->stored();
}

void check_operand(const char* op, const CsrPattern& a, const Tensor& x, const std::optional<RowPlaces>& x_rows = {}) {
  check_type(is_float(x.dtype()), op, "x is ", x.dtype(), ": expected a float dtype");
  check(x.ndim() == 2, op, "x is ", x.shape(), ": expected 2 dimensions");
  const std::int64_t rows = stored(op, "x", x_rows, a.cols(), a.device());
  check(x.size(0) == rows, op, "a is (", a.rows(), ", ", a.cols(), "), x is ", x.shape(), ": inner dimensions ", rows,
        " and ", x.size(0), " differ");
  check(x.device() == a.device(), op, "a is on ", a.device(), ", x on ", x.device());
}

}  // namespace

Tensor spmm(const CsrPattern& a, const std::optional<Tensor>& values, const Tensor& x, double alpha,
            const std::optional<Tensor>& z, double beta, const std::optional<RowPlaces>& x_rows,
            const std::optional<RowPlaces>& z_rows, const std::optional<RowPlaces>& y_rows) {
  const char* op = "spmm";
  check_operand(op, a, x, x_rows);
  const Device device = common_device(op, {&x, values ? &*values : nullptr, z ? &*z : nullptr});
  const Dtype accumulator = accumulator_of(x.dtype());
  const Tensor dense = in_rows(x);
  Tensor factors, addend;
  if (values) {
    check_type(values->dtype() == x.dtype() || values->dtype() == accumulator, op, "a is ", values->dtype(), ", x is ",
               x.dtype());
    check(values->shape() == Dims{a.size()}, op, "values is ", values->shape(), ": expected (", a.size(), ",)");
    factors = contiguous(cast(*values, accumulator));
  }
  if (z) {
    check_type(z->dtype() == x.dtype(), op, "z is ", z->dtype(), ", x is ", x.dtype());
    const std::int64_t rows = stored(op, "z", z_rows, a.rows(), device);
    check(z->shape() == (Dims{rows, x.size(1)}), op, "z is ", z->shape(), ": expected (", rows, ", ", x.size(1), ")");
    addend = in_rows(*z);
  }
  Tensor y = empty({stored(op, "y", y_rows, a.rows(), device), x.size(1)}, x.dtype(), device);
  if (y.numel() == 0) return y;
  const auto map = [](const std::optional<RowPlaces>& rows) { return rows ? rows->map() : nullptr; };
  const Tensor partial = empty({a.view().segments, x.size(1)}, accumulator, device);
  const SpmmArgs args{.a = a.view(),
                      .values = values ? factors.raw() : nullptr,
                      .x = dense.raw(),
                      .x_stride = dense.stride(0),
                      .dtype = x.dtype(),
                      .width = x.size(1),
                      .alpha = alpha,
                      .z = z ? addend.raw() : nullptr,
                      .z_stride = z ? addend.stride(0) : 0,
                      .beta = beta,
                      .y = y.raw(),
                      .partial = partial.raw(),
                      .x_places = map(x_rows),
                      .z_places = map(z_rows),
                      .y_places = map(y_rows)};
  dispatch(device, [&]<Isa I>() { cpu::spmm<I>(args); }, [&](auto stream) { cuda::spmm(args, stream); });
  return y;
}

Tensor spmm_backward_values(const CsrPattern& a, const Tensor& dy, const Tensor& x) {
  const char* op = "spmm_backward_values";
  check_operand(op, a, x);
  const Device device = common_device(op, {&dy, &x});
  check_type(dy.dtype() == x.dtype(), op, "dy is ", dy.dtype(), ", x is ", x.dtype());
  check(dy.shape() == (Dims{a.rows(), x.size(1)}), op, "dy is ", dy.shape(), ": expected (", a.rows(), ", ", x.size(1),
        ")");
  const Tensor gradient = contiguous(dy), dense = in_rows(x);
  Tensor dvalues = empty({a.size()}, x.dtype(), device);
  if (a.size() == 0) return dvalues;
  // A row is a bag, its values the bag's factors.
  const BagScaleArgs args{.bag = {.weight = dense.raw(),
                                  .row_stride = dense.stride(0),
                                  .dtype = x.dtype(),
                                  .width = x.size(1),
                                  .indices = a.indices().raw(),
                                  .index_dtype = a.indices().dtype(),
                                  .size = a.size(),
                                  .bags = a.rows(),
                                  .offsets = a.view().indptr},
                          .dy = gradient.raw(),
                          .dscale = dvalues.raw()};
  dispatch(
      device, [&]<Isa I>() { cpu::embedding_bag_backward_scale<I>(args); },
      [&](auto stream) { cuda::embedding_bag_backward_scale(args, stream); });
  return dvalues;
}

}  // namespace drupe::ops
