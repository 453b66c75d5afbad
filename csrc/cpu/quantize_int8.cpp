// quantize_int8: a row is swept twice, the second time in cache. Bytes: x once, q once.
#include "ops/quantize_int8.h"

#include <algorithm>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "cpu/lanes.h"

namespace drupe::cpu {
namespace {

// The largest magnitude, or what is not finite.
template <Isa I, class S>
float largest_magnitude(const S* x, std::int64_t size) {
  using V = Vec<float, I>;
  constexpr int kPartials = 4;           // hide the latencies
  V most[kPartials], poison[kPartials];  // 0 x: NaN where x is not finite
  for (int p = 0; p < kPartials; ++p) most[p] = poison[p] = V::zero();
  const auto add = [&](std::int64_t i, auto lanes, V& largest, V& zero) {
    const V value = load<V>(x + i, lanes);
    largest = max(largest, abs(value));
    zero = fma(value, V::zero(), zero);
  };
  std::int64_t i = 0;
  for (; i + kPartials * V::kLanes <= size; i += kPartials * V::kLanes) {
    for (int p = 0; p < kPartials; ++p) add(i + p * V::kLanes, AllLanes{}, most[p], poison[p]);
  }
  for_vectors<I, float>(size - i, [&](std::int64_t j, auto lanes) { add(i + j, lanes, most[0], poison[0]); });
  return reduce_max(max(max(most[0], most[1]), max(most[2], most[3]))) +
         reduce_add((poison[0] + poison[1]) + (poison[2] + poison[3]));
}

template <Isa I, class S>
void quantize_row(const S* x, std::int8_t* q, float scale, std::int64_t size) {
  using V = Vec<float, I>;
  const V divisor = V::set(scale), limit = V::set(127);
  auto* bytes = reinterpret_cast<std::uint8_t*>(q);
  for_vectors<I, float>(size, [&](std::int64_t i, auto lanes) {
    const V value = max(min(round(load<V>(x + i, lanes) / divisor), limit), -limit);
    store(select(value < V::zero(), value + V::set(256), value), bytes + i, lanes);  // two's complement
  });
}

}  // namespace

template <Isa I>
void quantize_int8(const QuantizeInt8Args& args) {
  constexpr std::int64_t kGrainElements = 16384;  // of a task
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, args.size));
  const auto quantize = [&]<class S>() {
    parallel_ranges(args.rows, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const S* x = static_cast<const S*>(args.x) + row * args.size;
        std::int8_t* q = args.q + row * args.size;
        const float scale = largest_magnitude<I>(x, args.size) / 127;
        args.scale[row] = scale;
        if (scale > 0) {
          quantize_row<I>(x, q, scale, args.size);
        } else {
          std::fill_n(q, args.size, std::int8_t{0});
        }
      }
    });
  };
  dispatch_narrow_float(args.dtype, quantize);
}

template void quantize_int8<Isa::DRUPE_ISA>(const QuantizeInt8Args&);

}  // namespace drupe::cpu
