// Pointwise functions: y[i] = f(x0[i], x1[i], …) over flat arrays, 16 bytes at a time where all are aligned. Bytes:
// each operand once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <platform/launch.cuh>

#include "cuda/tile/vec.cuh"

namespace drupe::cuda {

inline constexpr int kMapThreads = 256;
inline constexpr int kMapPacks = 4;  // a thread's share, in packs

// Blocks of `threads` that cover `items` at `per_thread` each, at most what a grid holds; kernels stride by the grid.
inline unsigned blocks_for(std::int64_t items, std::int64_t per_thread = 1, int threads = kMapThreads) {
  const std::int64_t per_block = per_thread * threads;
  return static_cast<unsigned>(std::clamp<std::int64_t>((items + per_block - 1) / per_block, 1, 0x7fffffff));
}

__device__ __forceinline__ std::int64_t global_thread() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ std::int64_t global_threads() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}

// The first `packed` elements go in packs of kPack, the rest one by one.
template <int kPack, class F, class Y, class... X>
__global__ __launch_bounds__(kMapThreads, 2) void map_kernel(F f, std::int64_t packed, std::int64_t size, Y* y,
                                                             const X*... x) {
  for (std::int64_t i = global_thread() * kPack; i < packed; i += global_threads() * kPack) {
    Pack<Y, kPack> result;
    const auto apply = [&](const Pack<X, kPack>&... operands) {
#pragma unroll
      for (int k = 0; k < kPack; ++k) result.element[k] = f(operands.element[k]...);
    };
    apply(load_pack<kPack>(x + i)...);
    store_pack(y + i, result);
  }
  for (std::int64_t i = packed + global_thread(); i < size; i += global_threads()) y[i] = f(x[i]...);
}

template <class T, class... Others>
inline constexpr int kWidest = std::max(static_cast<int>(sizeof(T)), kWidest<Others...>);
template <class T>
inline constexpr int kWidest<T> = static_cast<int>(sizeof(T));

template <class F, class Y, class... X>
void map(Stream stream, F f, std::int64_t size, Y* y, const X*... x) {
  if (size == 0) return;
  constexpr int kPack = 16 / kWidest<Y, X...>;
  // Narrower operands move in shorter packs, which their own size must align.
  const bool aligned = is_pack_aligned(y, x...);
  const std::int64_t packed = aligned ? size / kPack * kPack : 0;
  const LaunchConfig config{.grid = {blocks_for(size, kPack * kMapPacks)}, .block = {kMapThreads}};
  launch<map_kernel<kPack, F, Y, X...>>(config, stream, f, packed, size, y, x...);
}

}  // namespace drupe::cuda
