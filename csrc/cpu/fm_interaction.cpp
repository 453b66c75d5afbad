// A task is a range of examples. The sums over the fields and those of squares stay in registers, a block of columns at
// a time; backward reads an example a second time while it is in cache, and writes it as one flat row. Bytes: v once,
// and dv.
#include "ops/fm_interaction.h"

#include <algorithm>

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/lanes.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kTaskElements = 32768;

std::int64_t grain(const FmInteractionArgs& args) {
  return std::max<std::int64_t>(1, kTaskElements / (args.F * args.E));
}

// (sum_f v)^2 - sum_f v^2 of these columns.
template <class V, class S, class Lanes>
DRUPE_INLINE V interact(const S* v, std::int64_t F, std::int64_t E, Lanes lanes) {
  V sum[2] = {V::zero(), V::zero()}, squares[2] = {V::zero(), V::zero()};  // of even fields and of odd ones
  std::int64_t f = 0;
  for (; f + 2 <= F; f += 2) {
    for (int k = 0; k < 2; ++k) {
      const V x = load<V>(v + (f + k) * E, lanes);
      sum[k] = sum[k] + x;
      squares[k] = fma(x, x, squares[k]);
    }
  }
  if (f < F) {
    const V x = load<V>(v + f * E, lanes);
    sum[0] = sum[0] + x;
    squares[0] = fma(x, x, squares[0]);
  }
  const V total = sum[0] + sum[1];
  return total * total - (squares[0] + squares[1]);
}

// The sums over the fields, and after them their beginning again, so that a register can be read from any column on.
template <Isa I, class S, class T>
DRUPE_INLINE void sum_fields(const S* v, std::int64_t F, std::int64_t E, T* sums) {
  using V = Vec<T, I>;
  for_vectors<I, T>(E, [&](std::int64_t column, auto lanes) {
    V sum = V::zero();
    for (std::int64_t f = 0; f < F; ++f) sum = sum + load<V>(v + f * E + column, lanes);
    store(sum, sums + column, lanes);
  });
  for (std::int64_t i = 0; i + 1 < V::kLanes; ++i) sums[E + i] = sums[i];
}

}  // namespace

template <Isa I>
void fm_interaction(const FmInteractionArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    using T = Accumulator<S>;
    using V = Vec<T, I>;
    parallel_ranges(args.B, grain(args), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t b = begin; b < end; ++b) {
        const S* v = static_cast<const S*>(args.v) + b * args.F * args.E;
        V y = V::zero();
        for_vectors<I, T>(
            args.E, [&](std::int64_t column, auto lanes) { y = y + interact<V>(v + column, args.F, args.E, lanes); });
        static_cast<S*>(args.y)[b] = static_cast<S>(T(0.5) * reduce_add(y));
      }
    });
  });
}

template <Isa I>
void fm_interaction_backward(const FmInteractionArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    using T = Accumulator<S>;
    using V = Vec<T, I>;
    const std::int64_t size = args.F * args.E, step = V::kLanes % args.E;
    parallel_ranges(args.B, grain(args), [&](std::int64_t begin, std::int64_t end) {
      Scratch<T> sums(static_cast<std::size_t>(args.E + V::kLanes));
      for (std::int64_t b = begin; b < end; ++b) {
        const S* v = static_cast<const S*>(args.v) + b * size;
        S* dv = static_cast<S*>(args.dv) + b * size;
        const V dy = V::set(static_cast<T>(static_cast<const S*>(args.dy)[b]));
        sum_fields<I>(v, args.F, args.E, sums.data());
        std::int64_t column = 0;
        for_vectors<I, T>(size, [&](std::int64_t i, auto lanes) {
          store(dy * (V::load(sums.data() + column) - load<V>(v + i, lanes)), dv + i, lanes);
          column += step;
          if (column >= args.E) column -= args.E;
        });
      }
    });
  });
}

template void fm_interaction<Isa::DRUPE_ISA>(const FmInteractionArgs&);
template void fm_interaction_backward<Isa::DRUPE_ISA>(const FmInteractionArgs&);

}  // namespace drupe::cpu
