// Dropout: one pass; the uniforms of a few blocks at a time stay in L1. Bytes: x and y, and the mask's bits if kept;
// on the way back dy, dx and the bits. Worklog: bench/worklog/elementwise.md.
#include "ops/dropout.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "cpu/lanes.h"
#include "cpu/philox.h"
#include "cpu/simd_mask.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrainElements = 16384;  // of a task; a multiple of every kUniforms
constexpr std::int64_t kWord = 16;              // bits of the mask that are written at once

template <class T>
T scale_of(const DropoutArgs& args) {
  return args.p < 1 ? static_cast<T>(1 / (1 - args.p)) : T(0);
}

template <Isa I, class S>
void forward(const DropoutArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  constexpr std::int64_t kUniforms = Philox<I>::kUniforms;
  const Philox<I> philox{args.seed, args.offset};
  // Uniforms are multiples of 2^-24: u >= p where u >= p rounded up to one, which a float holds exactly.
  const V threshold = V::set(static_cast<T>(std::ceil(args.p * 0x1p24) * 0x1p-24));
  const V scale = V::set(scale_of<T>(args));
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
      const std::int64_t count = std::min(kUniforms, end - i);
      std::uint16_t bits[kUniforms / kWord] = {};
      for_vectors<I, T>(count, [&](std::int64_t k, auto lanes) {
        const auto kept = threshold <= V::load(uniforms + k);
        store(select(kept, load<V>(x + k, lanes) * scale, V::zero()), y + k, lanes);
        bits[k / kWord] |= static_cast<std::uint16_t>(MaskBits<T, I>::from(kept) << k % kWord);
      });
      if (args.mask) std::memcpy(args.mask + i / 8, bits, static_cast<std::size_t>((count + kWord - 1) / kWord * 2));
    }
  });
}

template <Isa I, class S>
void backward(const DropoutArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const V scale = V::set(scale_of<T>(args));
  const bool stream = passes_caches<S>(args.size);
  parallel_ranges(args.size, kGrainElements, [&](std::int64_t begin, std::int64_t end) {
    const S* dy = static_cast<const S*>(args.x) + begin;
    const auto value = [&](std::int64_t i, auto lanes) {
      return select(load_mask<T, I>(args.mask, begin + i), load<V>(dy + i, lanes) * scale, V::zero());
    };
    write_vectors<I>(static_cast<S*>(args.y) + begin, end - begin, value, stream);
    if (stream) stream_fence<I>();
  });
}

}  // namespace

template <Isa I>
void dropout(const DropoutArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { forward<I, S>(args); });
}

template <Isa I>
void dropout_backward(const DropoutArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { backward<I, S>(args); });
}

template void dropout<Isa::DRUPE_ISA>(const DropoutArgs&);
template void dropout_backward<Isa::DRUPE_ISA>(const DropoutArgs&);

}  // namespace drupe::cpu
