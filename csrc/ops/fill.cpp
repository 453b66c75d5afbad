#include "ops/fill.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/check.h"
#include "core/dispatch.h"
#include "ops/backend.h"

namespace drupe::ops {
namespace {

template <class T>
T convert(Scalar value, const char* op) {
  if constexpr (std::is_same_v<T, bool>) {
    return std::visit([](auto number) { return number != 0; }, value);
  } else if constexpr (std::is_integral_v<T>) {
    const auto* number = std::get_if<double>(&value);
    // 2^63 is exact, and one past the largest.
    if (number) {
      check(std::floor(*number) == *number && *number >= -0x1p63 && *number < 0x1p63, op, "value ", *number,
            " does not fit in ", dtype_of<T>);
    }
    const auto whole = std::visit([](auto n) { return static_cast<std::int64_t>(n); }, value);
    check(whole >= static_cast<std::int64_t>(std::numeric_limits<T>::min()) &&
              whole <= static_cast<std::int64_t>(std::numeric_limits<T>::max()),
          op, "value ", whole, " does not fit in ", dtype_of<T>);
    return static_cast<T>(whole);
  } else {
    return static_cast<T>(std::visit([](auto n) { return static_cast<Accumulator<T>>(n); }, value));
  }
}

}  // namespace

Tensor full(const Dims& shape, Scalar value, Dtype dtype, Device device) {
  Tensor y = empty(shape, dtype, device);
  dispatch_any(dtype, [&]<class T>() {
    const T value_as_stored = convert<T>(value, "full");
    FillArgs args{
        .y = y.raw(), .bytes = static_cast<std::int64_t>(y.nbytes()), .element = {}, .element_bytes = sizeof(T)};
    std::memcpy(args.element, &value_as_stored, sizeof(T));
    dispatch(device, [&]<Isa I>() { cpu::fill<I>(args); }, [&](auto stream) { cuda::fill(args, stream); });
  });
  return y;
}

Tensor scalar(const std::string& op, Scalar value, Dtype dtype, Device device) {
  const char* name = op.c_str();
  if (const auto* number = std::get_if<double>(&value)) {
    check_type(is_float(dtype), name, "the float ", *number, " does not combine with a tensor of ", dtype);
  }
  if (std::holds_alternative<std::int64_t>(value)) {
    check_type(dtype != Dtype::boolean, name, "the integer ", std::get<std::int64_t>(value),
               " does not combine with a tensor of ", dtype);
  }
  dispatch_any(dtype, [&]<class T>() { convert<T>(value, name); });  // an error names this op
  return full({}, value, dtype, device);
}

}  // namespace drupe::ops
