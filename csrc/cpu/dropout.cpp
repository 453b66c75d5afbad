// Dropout: one pass; the uniforms of a few blocks at a time stay in L1. Bytes: x and y.
#include "ops/dropout.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "cpu/lanes.h"
#include "cpu/philox.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrainElements = 16384;  // of a task; a multiple of every kUniforms

template <Isa I, class S>
void run(const DropoutArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  constexpr std::int64_t kUniforms = Philox<I>::kUniforms;
  const Philox<I> philox{args.seed, args.offset};
  // Uniforms are multiples of 2^-24: u >= p where u >= p rounded up to one, which a float holds exactly.
  const V threshold = V::set(static_cast<T>(std::ceil(args.p * 0x1p24) * 0x1p-24));
  const V scale = V::set(args.p < 1 ? static_cast<T>(1 / (1 - args.p)) : T(0));
  parallel_ranges(args.size, kGrainElements, [&](std::int64_t begin, std::int64_t end) {
    T uniforms[kUniforms];
    for (std::int64_t i = begin; i < end; i += kUniforms) {
      if constexpr (std::is_same_v<T, float>) {
        philox(static_cast<std::uint64_t>(i / 4), uniforms);
      } else {
        float narrow[kUniforms];
        philox(static_cast<std::uint64_t>(i / 4), narrow);
        for (std::int64_t k = 0; k < kUniforms; ++k) uniforms[k] = static_cast<T>(narrow[k]);
      }
      const S* x = static_cast<const S*>(args.x) + i;
      S* y = static_cast<S*>(args.y) + i;
      for_vectors<I, T>(std::min(kUniforms, end - i), [&](std::int64_t k, auto lanes) {
        const auto kept = threshold <= V::load(uniforms + k);
        store(select(kept, load<V>(x + k, lanes) * scale, V::zero()), y + k, lanes);
      });
    }
  });
}

}  // namespace

template <Isa I>
void dropout(const DropoutArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { run<I, S>(args); });
}

template void dropout<Isa::DRUPE_ISA>(const DropoutArgs&);

}  // namespace drupe::cpu
