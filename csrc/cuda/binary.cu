// Pointwise operations on two operands, and where, broadcast. Bytes: each operand read once, y written once. The
// comparisons of a dtype share one kernel, which looks the answer up.
#include "ops/binary.h"

#include <type_traits>

#include "core/dispatch.h"
#include "cuda/tile/broadcast.cuh"
#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {
namespace {

template <class T>
__device__ __forceinline__ T floor_divide(T a, T b) {
  if constexpr (std::is_unsigned_v<T>) {
    return static_cast<T>(a / b);
  } else {
    // a / -1 overflows for the smallest a; the negation wraps around.
    if (b == T(-1)) return static_cast<T>(std::uint64_t{0} - static_cast<std::uint64_t>(a));
    return static_cast<T>(a / b - (a % b != 0 && (a < 0) != (b < 0)));
  }
}

// By repeated squaring; b >= 0.
template <class T>
__device__ __forceinline__ T integer_power(T a, T b) {
  std::uint64_t base = static_cast<std::uint64_t>(a), power = 1;
  for (auto rest = static_cast<std::uint64_t>(b); rest; rest >>= 1, base *= base) {
    if (rest & 1) power *= base;
  }
  return static_cast<T>(power);
}

template <Binary kOp, class T>
struct Arithmetic {
  __device__ __forceinline__ T operator()(T left, T right) const {
    using A = Accumulator<T>;
    const A a = widen(left), b = widen(right);
    if constexpr (kOp == Binary::maximum) {
      return narrow<T>(Maximum{}(a, b));
    } else if constexpr (kOp == Binary::minimum) {
      return narrow<T>(Minimum{}(a, b));
    } else if constexpr (std::is_floating_point_v<A>) {
      if constexpr (kOp == Binary::add) return narrow<T>(a + b);
      if constexpr (kOp == Binary::sub) return narrow<T>(a - b);
      if constexpr (kOp == Binary::mul) return narrow<T>(a * b);
      if constexpr (kOp == Binary::div) return narrow<T>(a / b);
      if constexpr (kOp == Binary::pow) return narrow<T>(std::pow(a, b));
    } else {
      // Unsigned arithmetic wraps around where signed overflow would be undefined.
      using U = std::conditional_t<(sizeof(T) < 8), std::uint32_t, std::uint64_t>;
      if constexpr (kOp == Binary::add) return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
      if constexpr (kOp == Binary::sub) return static_cast<T>(static_cast<U>(a) - static_cast<U>(b));
      if constexpr (kOp == Binary::mul) return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
      if constexpr (kOp == Binary::div) return floor_divide(a, b);
      if constexpr (kOp == Binary::pow) return integer_power(a, b);
    }
  }
};

// Bit i of `answers` is the result where the operands are 0: less, 1: equal, 2: greater, 3: unordered.
template <class T>
struct Compare {
  unsigned answers;
  __device__ __forceinline__ bool operator()(T left, T right) const {
    const auto a = widen(left), b = widen(right);
    const unsigned order = a < b ? 0 : a == b ? 1 : a > b ? 2 : 3;
    return (answers >> order & 1) != 0;
  }
};

// Bit i of `answers` is the result where i operands are nonzero.
template <class T>
struct Logical {
  unsigned answers;
  __device__ __forceinline__ bool operator()(T left, T right) const {
    using A = Accumulator<T>;
    const unsigned nonzero = (widen(left) != A(0)) + (widen(right) != A(0));
    return (answers >> nonzero & 1) != 0;
  }
};

template <class T>
struct Choose {
  __device__ __forceinline__ T operator()(bool condition, T a, T b) const { return condition ? a : b; }
};

constexpr unsigned comparison_answers(Binary op) {
  switch (op) {
    case Binary::eq:
      return 0b0010;
    case Binary::ne:
      return 0b1101;
    case Binary::lt:
      return 0b0001;
    case Binary::le:
      return 0b0011;
    case Binary::gt:
      return 0b0100;
    default:
      return 0b0110;  // ge
  }
}

template <class T, class F>
void run(const BinaryArgs& args, Stream stream, F f) {
  using Y = std::conditional_t<std::is_same_v<F, Compare<T>> || std::is_same_v<F, Logical<T>>, bool, T>;
  broadcast(stream, f, args.loops, static_cast<Y*>(args.y), static_cast<const T*>(args.a),
            static_cast<const T*>(args.b));
}

template <class T>
void arithmetic(const BinaryArgs& args, Stream stream) {
  switch (args.op) {
    case Binary::add:
      return run<T>(args, stream, Arithmetic<Binary::add, T>{});
    case Binary::sub:
      return run<T>(args, stream, Arithmetic<Binary::sub, T>{});
    case Binary::mul:
      return run<T>(args, stream, Arithmetic<Binary::mul, T>{});
    case Binary::div:
      return run<T>(args, stream, Arithmetic<Binary::div, T>{});
    default:
      return run<T>(args, stream, Arithmetic<Binary::pow, T>{});
  }
}

template <class T>
void where_words(const WhereArgs& args, Stream stream) {
  broadcast(stream, Choose<T>{}, args.loops, static_cast<T*>(args.y), static_cast<const bool*>(args.condition),
            static_cast<const T*>(args.a), static_cast<const T*>(args.b));
}

}  // namespace

void binary(const BinaryArgs& args, Stream stream) {
  dispatch_any(args.dtype, [&]<class T>() {
    if (args.op >= Binary::logical_and) {
      run<T>(args, stream, Logical<T>{args.op == Binary::logical_and ? 0b100u : 0b110u});
    } else if (args.op >= Binary::eq) {
      run<T>(args, stream, Compare<T>{comparison_answers(args.op)});
    } else if (args.op == Binary::maximum) {
      run<T>(args, stream, Arithmetic<Binary::maximum, T>{});
    } else if (args.op == Binary::minimum) {
      run<T>(args, stream, Arithmetic<Binary::minimum, T>{});
    } else if constexpr (!std::is_same_v<T, bool>) {
      arithmetic<T>(args, stream);
    }
  });
}

void where(const WhereArgs& args, Stream stream) {
  switch (size_of(args.dtype)) {
    case 1:
      return where_words<std::uint8_t>(args, stream);
    case 2:
      return where_words<std::uint16_t>(args, stream);
    case 4:
      return where_words<std::uint32_t>(args, stream);
    default:
      return where_words<std::uint64_t>(args, stream);
  }
}

}  // namespace drupe::cuda
