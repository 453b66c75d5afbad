// From run-time dtypes to compile-time types, by templated lambdas. The ops have checked the dtype before.
#pragma once

#include "core/dtype.h"

namespace drupe {

// Throws std::logic_error: an op let a dtype through that its kernel does not have.
[[noreturn]] void unexpected_dtype(Dtype dtype);

// Calls f.operator()<T>() for float, Float16 or BFloat16, which accumulate in float.
template <class F>
[[gnu::always_inline]] inline void dispatch_narrow_float(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f.template operator()<float>();
    case Dtype::f16:
      return f.template operator()<Float16>();
    case Dtype::bf16:
      return f.template operator()<BFloat16>();
    default:
      unexpected_dtype(dtype);
  }
}

// For those and double.
template <class F>
[[gnu::always_inline]] inline void dispatch_float(Dtype dtype, F&& f) {
  if (dtype == Dtype::f64) return f.template operator()<double>();
  dispatch_narrow_float(dtype, f);
}

// For int32 and int64.
template <class F>
[[gnu::always_inline]] inline void dispatch_index(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::i32:
      return f.template operator()<std::int32_t>();
    case Dtype::i64:
      return f.template operator()<std::int64_t>();
    default:
      unexpected_dtype(dtype);
  }
}

// For every dtype.
template <class F>
[[gnu::always_inline]] inline void dispatch_any(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::i8:
      return f.template operator()<std::int8_t>();
    case Dtype::u8:
      return f.template operator()<std::uint8_t>();
    case Dtype::i32:
      return f.template operator()<std::int32_t>();
    case Dtype::i64:
      return f.template operator()<std::int64_t>();
    case Dtype::boolean:
      return f.template operator()<bool>();
    default:
      return dispatch_float(dtype, f);
  }
}

}  // namespace drupe
