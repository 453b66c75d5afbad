// One pass: reads x (and dy), writes y. Bytes: 2 or 3 times the tensor. Masks and integers go through loops of fixed
// length that the compiler vectorises.
#include "ops/unary.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "cpu/simd_bools.h"
#include "cpu/simd_trig.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;  // elements a task
constexpr int kBlock = 64;              // elements of a fixed-length loop

template <Unary Op>
constexpr bool kGivesMask = Op == Unary::logical_not || Op == Unary::isnan || Op == Unary::isfinite;

template <Unary Op, class T, Isa I>
DRUPE_INLINE Vec<T, I> apply(Vec<T, I> x, const UnaryArgs& args) {
  using V = Vec<T, I>;
  const V one = V::set(1);
  if constexpr (Op == Unary::neg) return -x;
  if constexpr (Op == Unary::abs) return abs(x);
  if constexpr (Op == Unary::square) return x * x;
  if constexpr (Op == Unary::sign) {
    return select((x == V::zero()) | ~(x == x), x, copysign(one, x));  // zeros and NaN are themselves
  }
  if constexpr (Op == Unary::exp) return exp(x);
  if constexpr (Op == Unary::expm1) return expm1(x);
  if constexpr (Op == Unary::log) return log(x);
  if constexpr (Op == Unary::log1p) return log1p(x);
  if constexpr (Op == Unary::sqrt) return sqrt(x);
  if constexpr (Op == Unary::rsqrt) return one / sqrt(x);
  if constexpr (Op == Unary::reciprocal) return one / x;
  if constexpr (Op == Unary::sin) return sin(x);
  if constexpr (Op == Unary::cos) return cos(x);
  if constexpr (Op == Unary::erf) return erf(x);
  if constexpr (Op == Unary::floor) return floor(x);
  if constexpr (Op == Unary::ceil) return -floor(-x);
  if constexpr (Op == Unary::round) return round(x);
  // max and min give their second operand where either is NaN.
  if constexpr (Op == Unary::clamp) return min(V::set(T(args.high)), max(V::set(T(args.low)), x));
}

template <Unary Op, class T, Isa I>
DRUPE_INLINE Mask<T, I> test(Vec<T, I> x) {
  if constexpr (Op == Unary::logical_not) return x == Vec<T, I>::zero();
  if constexpr (Op == Unary::isnan) return ~(x == x);
  if constexpr (Op == Unary::isfinite) return abs(x) <= Vec<T, I>::set(std::numeric_limits<T>::max());
}

// f'(x), from x or from y = f(x) as the op's header says, times dy.
template <Unary Op, class T, Isa I>
DRUPE_INLINE Vec<T, I> slope(Vec<T, I> s, Vec<T, I> dy, const UnaryArgs& args) {
  using V = Vec<T, I>;
  const V one = V::set(1);
  if constexpr (Op == Unary::abs) return select(s == V::zero(), V::zero(), dy * copysign(one, s));
  if constexpr (Op == Unary::square) return dy * (s + s);
  if constexpr (Op == Unary::expm1) return dy * (s + one);
  if constexpr (Op == Unary::log1p) return dy / (s + one);
  if constexpr (Op == Unary::sqrt) return V::set(T(0.5)) * dy / s;
  if constexpr (Op == Unary::rsqrt) return V::set(T(-0.5)) * dy * s * s * s;
  if constexpr (Op == Unary::reciprocal) return -dy * s * s;
  if constexpr (Op == Unary::sin) return dy * cos(s);
  if constexpr (Op == Unary::cos) return -dy * sin(s);
  if constexpr (Op == Unary::erf) return dy * V::set(T(1.1283791670955126)) * exp(-s * s);
  if constexpr (Op == Unary::clamp) {
    return select((V::set(T(args.low)) <= s) & (s <= V::set(T(args.high))), dy, V::zero());
  }
}

// out[i] = value(i, lanes) for i in [begin, end), past the caches where the whole result exceeds them. Narrow results
// keep their subnormals: write_vectors would round them to zero.
template <class T, Isa I, class Value>
DRUPE_INLINE void write_range(const UnaryArgs& args, std::int64_t begin, std::int64_t end, const Value& value) {
  using A = Accumulator<T>;
  T* out = static_cast<T*>(args.y) + begin;
  const auto from_begin = [&](std::int64_t i, auto lanes) { return value(begin + i, lanes); };
  if constexpr (std::is_same_v<T, A>) {
    const bool stream = passes_caches<T>(args.size);
    write_vectors<I>(out, end - begin, from_begin, stream);
    if (stream) stream_fence<I>();
  } else {
    for_vectors<I, A>(end - begin, [&](std::int64_t i, auto lanes) { store(from_begin(i, lanes), out + i, lanes); });
  }
}

// y[i] = f(x[i]) for i in [begin, end), in loops that the compiler vectorises.
template <class R, class T, class F>
DRUPE_INLINE void write_blocks(const UnaryArgs& args, std::int64_t begin, std::int64_t end, const F& f) {
  const T* x = static_cast<const T*>(args.x);
  R* y = static_cast<R*>(args.y);
  std::int64_t i = begin;
  for (; i + kBlock <= end; i += kBlock) {
#pragma GCC ivdep
    for (int j = 0; j < kBlock; ++j) y[i + j] = f(x[i + j]);
  }
  for (; i < end; ++i) y[i] = f(x[i]);
}

template <Unary Op, class T, Isa I>
void float_range(const UnaryArgs& args, std::int64_t begin, std::int64_t end) {
  using V = Vec<Accumulator<T>, I>;
  if constexpr (sizeof(T) == 2 && (Op == Unary::neg || Op == Unary::abs)) {  // the sign's bit alone
    using Word = std::uint16_t;
    return write_blocks<Word, Word>(args, begin, end, [](Word bits) {
      return static_cast<Word>(Op == Unary::neg ? bits ^ 0x8000u : bits & 0x7fffu);
    });
  }
  const T* x = static_cast<const T*>(args.x);
  write_range<T, I>(args, begin, end,
                    [&](std::int64_t i, auto lanes) { return apply<Op>(load<V>(x + i, lanes), args); });
}

template <Unary Op, class T, Isa I>
void mask_range(const UnaryArgs& args, std::int64_t begin, std::int64_t end) {
  using V = Vec<Accumulator<T>, I>;
  const T* x = static_cast<const T*>(args.x) + begin;
  write_bools<I, Accumulator<T>>(static_cast<bool*>(args.y) + begin, end - begin,
                                 [&](std::int64_t i, auto lanes) { return test<Op>(load<V>(x + i, lanes)); });
}

// Negation and products without sign wrap around.
template <Unary Op, class T>
DRUPE_INLINE auto integer(T x) {
  if constexpr (Op == Unary::neg) return static_cast<T>(std::uint64_t{0} - static_cast<std::uint64_t>(x));
  if constexpr (Op == Unary::abs) {
    return x < T(0) ? static_cast<T>(std::uint64_t{0} - static_cast<std::uint64_t>(x)) : x;
  }
  if constexpr (Op == Unary::square) {
    return static_cast<T>(static_cast<std::uint64_t>(x) * static_cast<std::uint64_t>(x));
  }
  if constexpr (Op == Unary::sign) return static_cast<T>((x > T(0)) - (x < T(0)));
  if constexpr (Op == Unary::logical_not) return x == T(0);
}

template <Unary Op, class T>
void integer_range(const UnaryArgs& args, std::int64_t begin, std::int64_t end) {
  write_blocks<decltype(integer<Op>(T())), T>(args, begin, end, [](T x) { return integer<Op>(x); });
}

template <Unary Op, class T, Isa I>
void backward_range(const UnaryArgs& args, std::int64_t begin, std::int64_t end) {
  using V = Vec<Accumulator<T>, I>;
  const T* s = static_cast<const T*>(args.x);
  const T* dy = static_cast<const T*>(args.dy);
  write_range<T, I>(args, begin, end, [&](std::int64_t i, auto lanes) {
    return slope<Op>(load<V>(s + i, lanes), load<V>(dy + i, lanes), args);
  });
}

// Calls f.operator()<Unary>().
template <class F>
DRUPE_INLINE void dispatch_op(Unary op, F&& f) {
  switch (op) {
    case Unary::neg:
      return f.template operator()<Unary::neg>();
    case Unary::abs:
      return f.template operator()<Unary::abs>();
    case Unary::square:
      return f.template operator()<Unary::square>();
    case Unary::sign:
      return f.template operator()<Unary::sign>();
    case Unary::logical_not:
      return f.template operator()<Unary::logical_not>();
    case Unary::exp:
      return f.template operator()<Unary::exp>();
    case Unary::expm1:
      return f.template operator()<Unary::expm1>();
    case Unary::log:
      return f.template operator()<Unary::log>();
    case Unary::log1p:
      return f.template operator()<Unary::log1p>();
    case Unary::sqrt:
      return f.template operator()<Unary::sqrt>();
    case Unary::rsqrt:
      return f.template operator()<Unary::rsqrt>();
    case Unary::reciprocal:
      return f.template operator()<Unary::reciprocal>();
    case Unary::sin:
      return f.template operator()<Unary::sin>();
    case Unary::cos:
      return f.template operator()<Unary::cos>();
    case Unary::erf:
      return f.template operator()<Unary::erf>();
    case Unary::floor:
      return f.template operator()<Unary::floor>();
    case Unary::ceil:
      return f.template operator()<Unary::ceil>();
    case Unary::round:
      return f.template operator()<Unary::round>();
    case Unary::isnan:
      return f.template operator()<Unary::isnan>();
    case Unary::isfinite:
      return f.template operator()<Unary::isfinite>();
    case Unary::clamp:
      return f.template operator()<Unary::clamp>();
  }
}

template <Unary Op>
constexpr bool kHasSlope = Op == Unary::abs || Op == Unary::square || Op == Unary::expm1 || Op == Unary::log1p ||
                           Op == Unary::sqrt || Op == Unary::rsqrt || Op == Unary::reciprocal || Op == Unary::sin ||
                           Op == Unary::cos || Op == Unary::erf || Op == Unary::clamp;

template <Unary Op, class T, Isa I>
void forward_range(const UnaryArgs& args, std::int64_t begin, std::int64_t end) {
  if constexpr (std::is_floating_point_v<Accumulator<T>>) {
    if constexpr (kGivesMask<Op>) {
      mask_range<Op, T, I>(args, begin, end);
    } else {
      float_range<Op, T, I>(args, begin, end);
    }
  } else if constexpr (Op == Unary::logical_not || (Op < Unary::logical_not && !std::is_same_v<T, bool>)) {
    integer_range<Op, T>(args, begin, end);
  } else {
    unexpected_dtype(args.dtype);
  }
}

}  // namespace

template <Isa I>
void unary(const UnaryArgs& args) {
  dispatch_any(args.dtype, [&]<class T>() {
    dispatch_op(args.op, [&]<Unary Op>() {
      parallel_ranges(args.size, kGrain,
                      [&](std::int64_t begin, std::int64_t end) { forward_range<Op, T, I>(args, begin, end); });
    });
  });
}

template <Isa I>
void unary_backward(const UnaryArgs& args) {
  dispatch_float(args.dtype, [&]<class T>() {
    dispatch_op(args.op, [&]<Unary Op>() {
      if constexpr (kHasSlope<Op>) {
        parallel_ranges(args.size, kGrain,
                        [&](std::int64_t begin, std::int64_t end) { backward_range<Op, T, I>(args, begin, end); });
      }
    });
  });
}

template void unary<Isa::DRUPE_ISA>(const UnaryArgs&);
template void unary_backward<Isa::DRUPE_ISA>(const UnaryArgs&);

}  // namespace drupe::cpu
