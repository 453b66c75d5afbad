// Loops that do nothing but what they measure. In registers: more independent sums than latency times ports,
// whose value stays near 1. In memory: whole registers, one slice a task, which is a slice a thread.
#include "ops/limits.h"

#include "core/parallel.h"
#include "cpu/simd.h"

namespace drupe::cpu {
namespace {

template <Isa I>
double fma_f32(const LimitArgs& args) {
  using V = Vec<float, I>;
  constexpr int kSums = kRegisters<I> / 4 * 3;
  parallel_for(args.tasks, [&](std::int64_t task) {
    V factor = V::set(0.875f), term = V::set(0.125f), sums[kSums];
#pragma GCC unroll 32
    for (int j = 0; j < kSums; ++j) sums[j] = V::set(1 + 0.01f * static_cast<float>(j));
    for (std::int64_t i = 0; i < args.repeats; ++i) {
#pragma GCC unroll 32
      for (int j = 0; j < kSums; ++j) sums[j] = fma(sums[j], factor, term);
    }
    V total = V::zero();
#pragma GCC unroll 32
    for (int j = 0; j < kSums; ++j) total = total + sums[j];
    total.store(args.sink + task * kLimitSink, 16);
  });
  return 2.0 * kSums * V::kLanes * static_cast<double>(args.repeats * args.tasks);
}

// AVX-512 BF16 is an extension that the avx512 objects do not assume: this one function has it, and is called
// only where the processor has it too.
#if defined(__AVX512F__)
constexpr int kDotSums = 24;

[[gnu::target("avx512bf16")]] void dot_bf16_task(std::int64_t repeats, float* sink) {
  const __m512bh one = (__m512bh)_mm512_set1_epi16(0x3f80);
  const __m512bh tiny = (__m512bh)_mm512_set1_epi16(0x3080);
  __m512 sums[kDotSums];
#pragma GCC unroll 32
  for (int j = 0; j < kDotSums; ++j) sums[j] = _mm512_set1_ps(static_cast<float>(j));
  for (std::int64_t i = 0; i < repeats; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kDotSums; ++j) sums[j] = _mm512_dpbf16_ps(sums[j], one, tiny);
  }
  __m512 total = _mm512_setzero_ps();
#pragma GCC unroll 32
  for (int j = 0; j < kDotSums; ++j) total = _mm512_add_ps(total, sums[j]);
  _mm512_storeu_ps(sink, total);
}
#endif

template <Isa I>
double dot_bf16([[maybe_unused]] const LimitArgs& args) {
#if defined(__AVX512F__)
  if (__builtin_cpu_supports("avx512bf16")) {
    parallel_for(args.tasks, [&](std::int64_t task) { dot_bf16_task(args.repeats, args.sink + task * kLimitSink); });
    return 4.0 * kDotSums * 16 * static_cast<double>(args.repeats * args.tasks);
  }
#endif
  return 0;
}

template <Isa I>
double read(const LimitArgs& args) {
  using V = Vec<float, I>;
  constexpr int kSums = 8;
  parallel_for(args.tasks, [&](std::int64_t task) {
    const float* src = args.src + task * args.size;
    V sums[kSums];
#pragma GCC unroll 8
    for (int j = 0; j < kSums; ++j) sums[j] = V::zero();
    for (std::int64_t pass = 0; pass < args.repeats; ++pass) {
      for (std::int64_t i = 0; i < args.size; i += kSums * V::kLanes) {
#pragma GCC unroll 8
        for (int j = 0; j < kSums; ++j) sums[j] = sums[j] + V::load(src + i + j * V::kLanes);
      }
    }
    V total = V::zero();
#pragma GCC unroll 8
    for (int j = 0; j < kSums; ++j) total = total + sums[j];
    total.store(args.sink + task * kLimitSink, 16);
  });
  return 4.0 * static_cast<double>(args.size * args.repeats * args.tasks);
}

template <Isa I, bool kStream>
double copy(const LimitArgs& args) {
  using V = Vec<float, I>;
  constexpr int kUnroll = 4;
  parallel_for(args.tasks, [&](std::int64_t task) {
    const float* src = args.src + task * args.size;
    float* dst = args.dst + task * args.size;
    for (std::int64_t pass = 0; pass < args.repeats; ++pass) {
      for (std::int64_t i = 0; i < args.size; i += kUnroll * V::kLanes) {
#pragma GCC unroll 4
        for (int j = 0; j < kUnroll; ++j) {
          const V x = V::load(src + i + j * V::kLanes);
          if constexpr (kStream) {
            x.stream(dst + i + j * V::kLanes);
          } else {
            x.store(dst + i + j * V::kLanes);
          }
        }
      }
    }
    if constexpr (kStream) stream_fence<I>();
  });
  return 8.0 * static_cast<double>(args.size * args.repeats * args.tasks);
}

}  // namespace

template <Isa I>
double run_limit(const LimitArgs& args) {
  switch (args.limit) {
    case Limit::fma_f32:
      return fma_f32<I>(args);
    case Limit::dot_bf16:
      return dot_bf16<I>(args);
    case Limit::read:
      return read<I>(args);
    case Limit::copy:
      return copy<I, false>(args);
    default:
      return copy<I, true>(args);
  }
}

template double run_limit<Isa::DRUPE_ISA>(const LimitArgs&);

}  // namespace drupe::cpu
