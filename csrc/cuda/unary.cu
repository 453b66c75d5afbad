// Pointwise functions of one operand. Bytes: x (and dy) read once, y written once.
#include "ops/unary.h"

#include <limits>
#include <type_traits>

#include "core/dispatch.h"
#include "cuda/tile/map.cuh"

namespace drupe::cuda {
namespace {

template <Unary kOp>
constexpr bool kGivesMask = kOp == Unary::logical_not || kOp == Unary::isnan || kOp == Unary::isfinite;

template <Unary kOp, class A>
__device__ __forceinline__ A apply(A x, A low, A high) {
  if constexpr (kOp == Unary::neg) return -x;
  if constexpr (kOp == Unary::abs) return std::fabs(x);
  if constexpr (kOp == Unary::square) return x * x;
  if constexpr (kOp == Unary::sign) return x == A(0) || x != x ? x : std::copysign(A(1), x);
  if constexpr (kOp == Unary::exp) return std::exp(x);
  if constexpr (kOp == Unary::expm1) return std::expm1(x);
  if constexpr (kOp == Unary::log) return std::log(x);
  if constexpr (kOp == Unary::log1p) return std::log1p(x);
  if constexpr (kOp == Unary::sqrt) return std::sqrt(x);
  if constexpr (kOp == Unary::rsqrt) return rsqrt(x);
  if constexpr (kOp == Unary::reciprocal) return A(1) / x;
  if constexpr (kOp == Unary::sin) return std::sin(x);
  if constexpr (kOp == Unary::cos) return std::cos(x);
  if constexpr (kOp == Unary::erf) return std::erf(x);
  if constexpr (kOp == Unary::floor) return std::floor(x);
  if constexpr (kOp == Unary::ceil) return std::ceil(x);
  if constexpr (kOp == Unary::round) return std::rint(x);
  if constexpr (kOp == Unary::clamp) {
    x = x < low ? low : x;  // NaN stays
    return x > high ? high : x;
  }
}

template <Unary kOp, class T>
struct Forward {
  using A = Accumulator<T>;
  // Spelled out: nvcc's host pass sees no body to deduce it from.
  using Result = std::conditional_t<kGivesMask<kOp>, bool, T>;
  A low, high;
  __device__ __forceinline__ Result operator()(T value) const {
    if constexpr (std::is_floating_point_v<A>) {
      const A x = widen(value);
      if constexpr (kOp == Unary::logical_not) return x == A(0);
      if constexpr (kOp == Unary::isnan) return x != x;
      if constexpr (kOp == Unary::isfinite) return std::fabs(x) <= std::numeric_limits<A>::max();
      if constexpr (!kGivesMask<kOp>) return narrow<T>(apply<kOp>(x, low, high));
    } else {
      // Arithmetic without sign wraps around.
      const auto x = static_cast<std::uint64_t>(value);
      if constexpr (kOp == Unary::neg) return static_cast<T>(std::uint64_t{0} - x);
      if constexpr (kOp == Unary::abs)
        return static_cast<T>(std::is_signed_v<T> && value < T(0) ? std::uint64_t{0} - x : x);
      if constexpr (kOp == Unary::square) return static_cast<T>(x * x);
      if constexpr (kOp == Unary::sign) return static_cast<T>((value > T(0)) - (std::is_signed_v<T> && value < T(0)));
      if constexpr (kOp == Unary::logical_not) return value == T(0);
    }
  }
};

// f'(x) dy, from x or from y = f(x) as the op's header says.
template <Unary kOp, class T>
struct Backward {
  using A = Accumulator<T>;
  A low, high;
  __device__ __forceinline__ T operator()(T saved, T gradient) const {
    const A s = widen(saved), dy = widen(gradient);
    if constexpr (kOp == Unary::abs) return narrow<T>(s == A(0) ? A(0) : dy * std::copysign(A(1), s));
    if constexpr (kOp == Unary::square) return narrow<T>(dy * (s + s));
    if constexpr (kOp == Unary::expm1) return narrow<T>(dy * (s + A(1)));
    if constexpr (kOp == Unary::log1p) return narrow<T>(dy / (s + A(1)));
    if constexpr (kOp == Unary::sqrt) return narrow<T>(A(0.5) * dy / s);
    if constexpr (kOp == Unary::rsqrt) return narrow<T>(A(-0.5) * dy * s * s * s);
    if constexpr (kOp == Unary::reciprocal) return narrow<T>(-dy * s * s);
    if constexpr (kOp == Unary::sin) return narrow<T>(dy * std::cos(s));
    if constexpr (kOp == Unary::cos) return narrow<T>(-dy * std::sin(s));
    if constexpr (kOp == Unary::erf) return narrow<T>(dy * A(1.1283791670955126) * std::exp(-s * s));
    if constexpr (kOp == Unary::clamp) return narrow<T>(low <= s && s <= high ? dy : A(0));
  }
};

// Calls f.operator()<Op>() for the ops from kOp on.
template <Unary kOp = Unary::neg, class F>
void dispatch_unary(Unary op, F&& f) {
  if (op == kOp) {
    f.template operator()<kOp>();
  } else if constexpr (kOp != Unary::clamp) {
    dispatch_unary<static_cast<Unary>(static_cast<int>(kOp) + 1)>(op, f);
  }
}

template <Unary kOp>
constexpr bool kTakesIntegers = kOp <= Unary::sign || kOp == Unary::logical_not;
template <Unary kOp>
constexpr bool kHasBackward = kOp == Unary::abs || kOp == Unary::square || kOp == Unary::expm1 || kOp == Unary::log1p ||
                              (kOp >= Unary::sqrt && kOp <= Unary::erf) || kOp == Unary::clamp;

}  // namespace

void unary(const UnaryArgs& args, Stream stream) {
  dispatch_unary(args.op, [&]<Unary kOp>() {
    const auto run = [&]<class T>() {
      using A = Accumulator<T>;
      const Forward<kOp, T> f{static_cast<A>(args.low), static_cast<A>(args.high)};
      map(stream, f, args.size, static_cast<typename Forward<kOp, T>::Result*>(args.y), static_cast<const T*>(args.x));
    };
    if constexpr (kOp == Unary::logical_not) {
      dispatch_any(args.dtype, run);
    } else if constexpr (kTakesIntegers<kOp>) {
      dispatch_any(args.dtype, [&]<class T>() {
        if constexpr (!std::is_same_v<T, bool>) run.template operator()<T>();
      });
    } else {
      dispatch_float(args.dtype, run);
    }
  });
}

void unary_backward(const UnaryArgs& args, Stream stream) {
  dispatch_unary(args.op, [&]<Unary kOp>() {
    if constexpr (kHasBackward<kOp>) {
      dispatch_float(args.dtype, [&]<class T>() {
        using A = Accumulator<T>;
        map(stream, Backward<kOp, T>{static_cast<A>(args.low), static_cast<A>(args.high)}, args.size,
            static_cast<T*>(args.y), static_cast<const T*>(args.x), static_cast<const T*>(args.dy));
      });
    }
  });
}

}  // namespace drupe::cuda
