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
  V most = V::zero(), poison = V::zero();  // 0 x: NaN where x is not finite
  for_vectors<I, float>(size, [&](std::int64_t i, auto lanes) {
    const V value = load<V>(x + i, lanes);
    most = max(most, abs(value));
    poison = fma(value, V::zero(), poison);
  });
  return reduce_max(most) + reduce_add(poison);
}

template <Isa I, class S>
void quantize_row(const S* x, std::int8_t* q, float scale, std::int64_t size) {
  using V = Vec<float, I>;
  const V divisor = V::set(scale), limit = V::set(127);
  for_vectors<I, float>(size, [&](std::int64_t i, auto lanes) {
    float values[V::kLanes];
    max(min(round(load<V>(x + i, lanes) / divisor), limit), -limit).store(values);
    const std::int64_t count = std::min<std::int64_t>(V::kLanes, size - i);
    for (std::int64_t k = 0; k < count; ++k) q[i + k] = static_cast<std::int8_t>(static_cast<int>(values[k]));
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
