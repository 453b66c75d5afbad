// One pass: reads a and b, writes y. A run along y's fastest dimension is a vector loop in which a and b are each
// contiguous or constant; integers and masks go through blocks of fixed length that the compiler vectorises.
#include "ops/binary.h"

#include <cmath>
#include <type_traits>

#include "core/dispatch.h"
#include "cpu/loops.h"
#include "cpu/simd_bools.h"
#include "cpu/simd_pow.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;  // elements a task
constexpr int kBlock = 64;              // elements of a fixed-length loop

template <Binary Op, class T, Isa I>
DRUPE_INLINE Vec<T, I> arithmetic(Vec<T, I> a, Vec<T, I> b) {
  if constexpr (Op == Binary::add) return a + b;
  if constexpr (Op == Binary::sub) return a - b;
  if constexpr (Op == Binary::mul) return a * b;
  if constexpr (Op == Binary::div) return a / b;
  // max and min give their second operand where either is NaN.
  if constexpr (Op == Binary::maximum) return select(a == a, max(a, b), a);
  if constexpr (Op == Binary::minimum) return select(a == a, min(a, b), a);
  if constexpr (Op == Binary::pow) return pow(a, b);
}

template <Binary Op, class T, Isa I>
DRUPE_INLINE Mask<T, I> compare(Vec<T, I> a, Vec<T, I> b) {
  const auto zero = Vec<T, I>::zero();
  if constexpr (Op == Binary::eq) return a == b;
  if constexpr (Op == Binary::ne) return ~(a == b);
  if constexpr (Op == Binary::lt) return a < b;
  if constexpr (Op == Binary::le) return a <= b;
  if constexpr (Op == Binary::gt) return a > b;
  if constexpr (Op == Binary::ge) return a >= b;
  if constexpr (Op == Binary::logical_and) return ~(a == zero) & ~(b == zero);
  if constexpr (Op == Binary::logical_or) return ~(a == zero) | ~(b == zero);
}

template <class T>
DRUPE_INLINE T floor_divide(T a, T b) {
  if constexpr (std::is_unsigned_v<T>) {
    return static_cast<T>(a / b);
  } else {
    // a / -1 overflows for the smallest a; the negation wraps around.
    if (b == -1) return static_cast<T>(std::uint64_t{0} - static_cast<std::uint64_t>(a));
    return static_cast<T>(a / b - (a % b != 0 && (a < 0) != (b < 0)));
  }
}

// By repeated squaring; b >= 0.
template <class T>
DRUPE_INLINE T integer_power(T a, T b) {
  std::uint64_t base = static_cast<std::uint64_t>(a), power = 1;
  for (auto rest = static_cast<std::uint64_t>(b); rest; rest >>= 1, base *= base) {
    if (rest & 1) power *= base;
  }
  return static_cast<T>(power);
}

// Unsigned arithmetic wraps around where signed overflow would be undefined.
template <Binary Op, class T>
DRUPE_INLINE auto integer(T a, T b) {
  using U = std::conditional_t<(sizeof(T) < 8), std::uint32_t, std::uint64_t>;
  if constexpr (Op == Binary::add) return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
  if constexpr (Op == Binary::sub) return static_cast<T>(static_cast<U>(a) - static_cast<U>(b));
  if constexpr (Op == Binary::mul) return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
  if constexpr (Op == Binary::div) return floor_divide(a, b);
  if constexpr (Op == Binary::pow) return integer_power(a, b);
  if constexpr (Op == Binary::maximum) return a > b ? a : b;
  if constexpr (Op == Binary::minimum) return a < b ? a : b;
  if constexpr (Op == Binary::eq) return a == b;
  if constexpr (Op == Binary::ne) return a != b;
  if constexpr (Op == Binary::lt) return a < b;
  if constexpr (Op == Binary::le) return a <= b;
  if constexpr (Op == Binary::gt) return a > b;
  if constexpr (Op == Binary::ge) return a >= b;
  if constexpr (Op == Binary::logical_and) return a != T(0) && b != T(0);
  if constexpr (Op == Binary::logical_or) return a != T(0) || b != T(0);
}

// y = f(a, b).
template <class T, Isa I, class F>
DRUPE_INLINE void write_row(const BinaryArgs& args, const std::int64_t* offsets, std::int64_t count, const F& f) {
  using V = Vec<Accumulator<T>, I>;
  const RowOperand<T, V::kLanes> a(args.a, offsets[1], inner_stride(args.loops, 1));
  const RowOperand<T, V::kLanes> b(args.b, offsets[2], inner_stride(args.loops, 2));
  T* y = static_cast<T*>(args.y) + offsets[0];
  std::int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) f(V::load(a.at(i)), V::load(b.at(i))).store(y + i);
  if (const int rest = static_cast<int>(count - i); rest > 0) {
    f(V::load(a.at(i), rest), V::load(b.at(i), rest)).store(y + i, rest);
  }
}

template <Binary Op, class T, Isa I>
void float_row(const BinaryArgs& args, const std::int64_t* offsets, std::int64_t count) {
  using A = Accumulator<T>;
  using V = Vec<A, I>;
  if constexpr (Op == Binary::pow) {  // by exponents that are one product or quotient
    if (inner_stride(args.loops, 2) == 0) {
      const A exponent = static_cast<A>(static_cast<const T*>(args.b)[offsets[2]]);
      if (exponent == A(2)) return write_row<T, I>(args, offsets, count, [](V x, V) { return x * x; });
      if (exponent == A(3)) return write_row<T, I>(args, offsets, count, [](V x, V) { return x * x * x; });
      if (exponent == A(-1)) return write_row<T, I>(args, offsets, count, [](V x, V) { return V::set(1) / x; });
    }
  }
  write_row<T, I>(args, offsets, count, [](V x, V y) { return arithmetic<Op>(x, y); });
}

template <Binary Op, class T, Isa I>
void mask_row(const BinaryArgs& args, const std::int64_t* offsets, std::int64_t count) {
  using A = Accumulator<T>;
  using V = Vec<A, I>;
  const RowOperand<T, V::kLanes> a(args.a, offsets[1], inner_stride(args.loops, 1));
  const RowOperand<T, V::kLanes> b(args.b, offsets[2], inner_stride(args.loops, 2));
  write_bools<I, A>(static_cast<bool*>(args.y) + offsets[0], count, [&](std::int64_t i, auto lanes) {
    return compare<Op>(load<V>(a.at(i), lanes), load<V>(b.at(i), lanes));
  });
}

template <Binary Op, class T>
void integer_row(const BinaryArgs& args, const std::int64_t* offsets, std::int64_t count) {
  using R = decltype(integer<Op>(T(), T()));
  const RowOperand<T, kBlock> a(args.a, offsets[1], inner_stride(args.loops, 1));
  const RowOperand<T, kBlock> b(args.b, offsets[2], inner_stride(args.loops, 2));
  R* y = static_cast<R*>(args.y) + offsets[0];
  std::int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    const T *p = a.at(i), *q = b.at(i);
#pragma GCC ivdep
    for (int j = 0; j < kBlock; ++j) y[i + j] = integer<Op>(p[j], q[j]);
  }
  for (int j = 0; i + j < count; ++j) y[i + j] = integer<Op>(a.at(i)[j], b.at(i)[j]);
}

// Calls f.operator()<Binary>().
template <class F>
DRUPE_INLINE void dispatch_op(Binary op, F&& f) {
  switch (op) {
    case Binary::add:
      return f.template operator()<Binary::add>();
    case Binary::sub:
      return f.template operator()<Binary::sub>();
    case Binary::mul:
      return f.template operator()<Binary::mul>();
    case Binary::div:
      return f.template operator()<Binary::div>();
    case Binary::pow:
      return f.template operator()<Binary::pow>();
    case Binary::maximum:
      return f.template operator()<Binary::maximum>();
    case Binary::minimum:
      return f.template operator()<Binary::minimum>();
    case Binary::eq:
      return f.template operator()<Binary::eq>();
    case Binary::ne:
      return f.template operator()<Binary::ne>();
    case Binary::lt:
      return f.template operator()<Binary::lt>();
    case Binary::le:
      return f.template operator()<Binary::le>();
    case Binary::gt:
      return f.template operator()<Binary::gt>();
    case Binary::ge:
      return f.template operator()<Binary::ge>();
    case Binary::logical_and:
      return f.template operator()<Binary::logical_and>();
    case Binary::logical_or:
      return f.template operator()<Binary::logical_or>();
  }
}

// Moves elements by their size alone.
template <class T, Isa I>
void where_rows(const WhereArgs& args) {
  for_each_row<I, 4>(args.loops, kGrain, [&](const std::int64_t* offsets, std::int64_t count) {
    const RowOperand<bool, kBlock> condition(args.condition, offsets[1], inner_stride(args.loops, 1));
    const RowOperand<T, kBlock> a(args.a, offsets[2], inner_stride(args.loops, 2));
    const RowOperand<T, kBlock> b(args.b, offsets[3], inner_stride(args.loops, 3));
    T* y = static_cast<T*>(args.y) + offsets[0];
    std::int64_t i = 0;
    for (; i + kBlock <= count; i += kBlock) {
      const bool* c = condition.at(i);
      const T *p = a.at(i), *q = b.at(i);
#pragma GCC ivdep
      for (int j = 0; j < kBlock; ++j) {
        const T mask = static_cast<T>(T(0) - static_cast<T>(c[j]));  // a choice would become one of two addresses
        y[i + j] = static_cast<T>((p[j] & mask) | (q[j] & static_cast<T>(~mask)));
      }
    }
    for (int j = 0; i + j < count; ++j) y[i + j] = condition.at(i)[j] ? a.at(i)[j] : b.at(i)[j];
  });
}

}  // namespace

template <Isa I>
void binary(const BinaryArgs& args) {
  dispatch_any(args.dtype, [&]<class T>() {
    dispatch_op(args.op, [&]<Binary Op>() {
      for_each_row<I, 3>(args.loops, kGrain, [&](const std::int64_t* offsets, std::int64_t count) {
        if constexpr (std::is_same_v<T, bool> && Op <= Binary::pow) {
          unexpected_dtype(args.dtype);
        } else if constexpr (!std::is_floating_point_v<Accumulator<T>>) {
          integer_row<Op, T>(args, offsets, count);
        } else if constexpr (Op >= Binary::eq) {
          mask_row<Op, T, I>(args, offsets, count);
        } else {
          float_row<Op, T, I>(args, offsets, count);
        }
      });
    });
  });
}

template <Isa I>
void where(const WhereArgs& args) {
  switch (size_of(args.dtype)) {
    case 1:
      return where_rows<std::uint8_t, I>(args);
    case 2:
      return where_rows<std::uint16_t, I>(args);
    case 4:
      return where_rows<std::uint32_t, I>(args);
    default:
      return where_rows<std::uint64_t, I>(args);
  }
}

template void binary<Isa::DRUPE_ISA>(const BinaryArgs&);
template void where<Isa::DRUPE_ISA>(const WhereArgs&);

}  // namespace drupe::cpu
