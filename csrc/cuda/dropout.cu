// Dropout: a thread draws whole Philox blocks, for as many elements as 16 bytes hold and at least one block's four.
// Bytes: x and y, once.
#include "ops/dropout.h"

#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "cuda/tile/map.cuh"
#include "cuda/tile/philox.cuh"

namespace drupe::cuda {
namespace {

// Whether an element stays, and by what it is multiplied then. Uniforms are multiples of 2^-24: u >= p where their
// numerators are at least p 2^24 rounded up.
template <class A>
struct Rule {
  std::uint64_t seed, offset;
  const std::uint64_t* state;
  std::uint32_t threshold;
  A scale;
};

template <class T>
inline constexpr int kGroup = std::max(4, kPackSize<T>);  // elements a thread draws for at once

template <class T>
__device__ __forceinline__ void load_group(Pack<T, kGroup<T>>& group, const T* x, int count, bool aligned) {
  if (aligned && count == kGroup<T>) {
#pragma unroll
    for (int k = 0; k < kGroup<T>; k += kPackSize<T>) {
      const auto pack = load_pack<kPackSize<T>>(x + k);
#pragma unroll
      for (int j = 0; j < kPackSize<T>; ++j) group.element[k + j] = pack.element[j];
    }
  } else {
#pragma unroll
    for (int k = 0; k < kGroup<T>; ++k) group.element[k] = k < count ? x[k] : narrow<T>(0);
  }
}

template <class T>
__device__ __forceinline__ void store_group(T* y, const Pack<T, kGroup<T>>& group, int count, bool aligned) {
  if (aligned && count == kGroup<T>) {
#pragma unroll
    for (int k = 0; k < kGroup<T>; k += kPackSize<T>) {
      Pack<T, kPackSize<T>> pack;
#pragma unroll
      for (int j = 0; j < kPackSize<T>; ++j) pack.element[j] = group.element[k + j];
      store_pack(y + k, pack);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kGroup<T>; ++k) {
      if (k < count) y[k] = group.element[k];
    }
  }
}

template <class T>
__global__ __launch_bounds__(kMapThreads) void dropout_kernel(Rule<Accumulator<T>> rule, std::int64_t size,
                                                              bool aligned, T* y, const T* x) {
  using A = Accumulator<T>;
  if (rule.state) {
    rule.seed = rule.state[0];
    rule.offset += rule.state[1];
  }
  for (std::int64_t i = global_thread() * kGroup<T>; i < size; i += global_threads() * kGroup<T>) {
    const int count = static_cast<int>(size - i < kGroup<T> ? size - i : kGroup<T>);
    Pack<T, kGroup<T>> group;
    load_group(group, x + i, count, aligned);
#pragma unroll
    for (int k = 0; k < kGroup<T>; k += 4) {
      const Words words = philox(rule.seed, rule.offset, static_cast<std::uint64_t>(i + k) / 4);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool kept = words.word[j] >> 8 >= rule.threshold;
        group.element[k + j] = narrow<T>(kept ? widen(group.element[k + j]) * rule.scale : A(0));
      }
    }
    store_group(y + i, group, count, aligned);
  }
}

}  // namespace

void dropout(const DropoutArgs& args, Stream stream) {
  if (args.size == 0) return;
  dispatch_float(args.dtype, [&]<class T>() {
    using A = Accumulator<T>;
    const Rule<A> rule{.seed = args.seed,
                       .offset = args.offset,
                       .state = args.state,
                       .threshold = static_cast<std::uint32_t>(std::ceil(args.p * 0x1p24)),
                       .scale = args.p < 1 ? static_cast<A>(1 / (1 - args.p)) : A(0)};
    auto* y = static_cast<T*>(args.y);
    const auto* x = static_cast<const T*>(args.x);
    const LaunchConfig config{.grid = {blocks_for(args.size, 2 * kGroup<T>)}, .block = {kMapThreads}};
    launch<dropout_kernel<T>>(config, stream, rule, args.size, is_pack_aligned(y, x), y, x);
  });
}

}  // namespace drupe::cuda
