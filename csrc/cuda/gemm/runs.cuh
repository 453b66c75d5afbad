// Runs of neighbouring elements of a row, as an epilogue takes them, and where a warp's sums become such runs.
#pragma once

#include <cstdint>
#include <platform/device.cuh>

#include "cuda/tile/activation.cuh"
#include "cuda/tile/vec.cuh"

namespace drupe::cuda {

// `count` elements exist; with `vectors` all of them, and aligned.
template <class T, class A, int kRun>
__device__ __forceinline__ void load_run(A (&run)[kRun], const T* from, std::int64_t stride, int count, bool vectors) {
  constexpr int kPack = kRun < kPackSize<T> ? kRun : kPackSize<T>;
  if (vectors) {
#pragma unroll
    for (int first = 0; first < kRun; first += kPack) {
      const auto pack = load_pack<kPack>(from + first);
#pragma unroll
      for (int e = 0; e < kPack; ++e) run[first + e] = widen(pack.element[e]);
    }
  } else {
#pragma unroll
    for (int e = 0; e < kRun; ++e) run[e] = e < count ? widen(from[e * stride]) : A(0);
  }
}

template <class T, class A, int kRun>
__device__ __forceinline__ void store_run(T* to, const A (&run)[kRun], int count, bool vectors) {
  constexpr int kPack = kRun < kPackSize<T> ? kRun : kPackSize<T>;
  if (vectors) {
#pragma unroll
    for (int first = 0; first < kRun; first += kPack) {
      Pack<T, kPack> pack;
#pragma unroll
      for (int e = 0; e < kPack; ++e) pack.element[e] = narrow<T>(run[first + e]);
      store_pack(to + first, pack);
    }
  } else {
#pragma unroll
    for (int e = 0; e < kRun; ++e) {
      if (e < count) to[e] = narrow<T>(run[e]);
    }
  }
}

template <Activation kA, class A, int kCount>
__device__ __forceinline__ void activate_run(A (&run)[kCount]) {
#pragma unroll
  for (int e = 0; e < kCount; ++e) run[e] = activate<kA>(run[e]);
}
template <class A, int kCount>
__device__ __forceinline__ void activate_run(Activation activation, A (&run)[kCount]) {
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
      return activate_run<Activation::relu>(run);
    case Activation::gelu:
      return activate_run<Activation::gelu>(run);
    case Activation::gelu_tanh:
      return activate_run<Activation::gelu_tanh>(run);
    case Activation::silu:
      return activate_run<Activation::silu>(run);
    case Activation::sigmoid:
      return activate_run<Activation::sigmoid>(run);
    case Activation::tanh:
      return activate_run<Activation::tanh>(run);
  }
}

// Half of a warp's sums on their way to y: a warp writes them as its fragments lie and reads them row by row.
template <class A, int kRowCount, int kColCount>
struct GemmSlab {
  static constexpr int kRows = kRowCount, kCols = kColCount;
  static constexpr int kPad = 8;  // rows of one column of fragments lie in different banks
  alignas(16) A value[kRows][kCols + kPad];
};

}  // namespace drupe::cuda
