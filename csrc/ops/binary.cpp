#include "ops/binary.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/reduce.h"

namespace drupe::ops {
namespace {

constexpr const char* kNames[] = {"add", "sub", "mul", "div", "pow", "maximum",     "minimum",   "eq",
                                  "ne",  "lt",  "le",  "gt",  "ge",  "logical_and", "logical_or"};

Binary parse(const std::string& name) {
  const auto* found = std::find(std::begin(kNames), std::end(kNames), name);
  check(found != std::end(kNames), "binary", "\"", name, "\" is no operation");
  return static_cast<Binary>(found - std::begin(kNames));
}

// y's memory order: that of the first operand that has y's shape and no gaps.
Tensor allocate_output(const Dims& shape, Dtype dtype, std::initializer_list<const Tensor*> operands) {
  for (const Tensor* x : operands) {
    if (x->shape() == shape && is_dense(*x)) return empty_like(*x, dtype);
  }
  return empty(shape, dtype, (*operands.begin())->device());
}

// What integers cannot do, found before anything is written.
void check_integers(Binary op, const Tensor& b) {
  if (is_float(b.dtype()) || b.numel() == 0) return;
  if (op == Binary::div) {
    check(*to_device(reduce("all", b, {}, false), Device{}).data<bool>(), "div", "b is ", b.shape(), " of ", b.dtype(),
          ": division by zero");
  }
  if (op == Binary::pow && b.dtype() != Dtype::u8) {
    const Tensor smallest = cast(to_device(reduce("min", b, {}, false), Device{}), Dtype::i64);
    check(*smallest.data<std::int64_t>() >= 0, "pow", "the exponent ", *smallest.data<std::int64_t>(),
          " is negative, and the dtype is ", b.dtype());
  }
}

}  // namespace

Tensor align_to(const Tensor& x, const Tensor& y) {
  const Tensor wide = x.broadcast_to(y.shape());
  int fastest = -1;
  Dims order;
  for (int i = 0; i < y.ndim(); ++i) {
    order.push_back(i);
    if (y.size(i) != 1 && (fastest < 0 || y.stride(i) < y.stride(fastest))) fastest = i;
  }
  if (fastest < 0 || wide.stride(fastest) == 0 || wide.stride(fastest) == 1) return wide;
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return y.stride(static_cast<int>(a)) > y.stride(static_cast<int>(b));
  });
  Tensor narrow = x;
  while (narrow.ndim() < y.ndim()) narrow = narrow.unsqueeze(0);
  Dims back = order;
  for (int i = 0; i < order.size(); ++i) back[static_cast<int>(order[i])] = i;
  return clone(narrow.permute(order)).permute(back).broadcast_to(y.shape());
}

Tensor binary(const std::string& name, const Tensor& a, const Tensor& b) {
  const Binary op = parse(name);
  const char* label = name.c_str();
  check_type(a.dtype() == b.dtype(), label, "a is ", a.dtype(), ", b is ", b.dtype(), ": expected one dtype");
  check_type(op > Binary::pow || a.dtype() != Dtype::boolean, label, "a and b are bool: expected numbers");
  const Device device = common_device(label, {&a, &b});
  const Dims shape = broadcast_shapes(a.shape(), b.shape(), label);
  check_integers(op, b);
  Tensor y = allocate_output(shape, op >= Binary::eq ? Dtype::boolean : a.dtype(), {&a, &b});
  if (y.numel() == 0) return y;
  const Tensor left = align_to(a, y);
  const Tensor right = align_to(b, y);
  const BinaryArgs args{.y = y.raw(),
                        .a = left.raw(),
                        .b = right.raw(),
                        .loops = collapse({&y, &left, &right}),
                        .dtype = a.dtype(),
                        .op = op};
  dispatch(device, [&]<Isa I>() { cpu::binary<I>(args); }, [&](auto stream) { cuda::binary(args, stream); });
  return y;
}

Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
  check_type(condition.dtype() == Dtype::boolean, "where", "the condition is ", condition.dtype(), ": expected bool");
  check_type(a.dtype() == b.dtype(), "where", "a is ", a.dtype(), ", b is ", b.dtype(), ": expected one dtype");
  const Device device = common_device("where", {&condition, &a, &b});
  const Dims shape = broadcast_shapes(condition.shape(), broadcast_shapes(a.shape(), b.shape(), "where"), "where");
  Tensor y = allocate_output(shape, a.dtype(), {&a, &b, &condition});
  if (y.numel() == 0) return y;
  const Tensor chosen = align_to(condition, y);
  const Tensor left = align_to(a, y);
  const Tensor right = align_to(b, y);
  const WhereArgs args{.y = y.raw(),
                       .condition = chosen.raw(),
                       .a = left.raw(),
                       .b = right.raw(),
                       .loops = collapse({&y, &chosen, &left, &right}),
                       .dtype = a.dtype()};
  dispatch(device, [&]<Isa I>() { cpu::where<I>(args); }, [&](auto stream) { cuda::where(args, stream); });
  return y;
}

}  // namespace drupe::ops
