// What kernels are written in: CUDA's keywords, indices and intrinsics, and the few things that it spells otherwise.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "core/dtype.h"

namespace drupe::cuda {

inline constexpr unsigned kFullMask = 0xffffffffu;

// Storage formats to and from what arithmetic happens in.
template <class T>
__device__ __forceinline__ Accumulator<T> widen(T value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
  } else if constexpr (std::is_same_v<T, Float16>) {
    return __half2float(__ushort_as_half(value.bits));
  } else {
    return value;
  }
}
template <class T>
__device__ __forceinline__ T narrow(Accumulator<T> value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    T result;
    result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
    return result;
  } else if constexpr (std::is_same_v<T, Float16>) {
    T result;
    result.bits = __half_as_ushort(__float2half_rn(value));
    return result;
  } else {
    return value;
  }
}

// 1 / sqrt(x)
__device__ __forceinline__ float rsqrt(float x) {
  return ::rsqrtf(x);
}
__device__ __forceinline__ double rsqrt(double x) {
  return ::rsqrt(x);
}

// a / b within 2 units in the last place; for floats 0 where |b| is above 2^126, NaN where a is not finite, too.
__device__ __forceinline__ float fast_divide(float a, float b) {
  return __fdividef(a, b);
}
__device__ __forceinline__ double fast_divide(double a, double b) {
  return a / b;
}

// The block's shared memory as a struct, uninitialised. Every launch asks for sizeof(Storage) bytes.
template <class Storage>
__device__ __forceinline__ Storage& shared_storage() {
  extern __shared__ __align__(1024) unsigned char drupe_shared_memory[];
  return *reinterpret_cast<Storage*>(drupe_shared_memory);
}

}  // namespace drupe::cuda
