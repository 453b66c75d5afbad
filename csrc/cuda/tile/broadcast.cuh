// Pointwise functions of operands that are broadcast against each other: y[i] = f(x0[i], x1[i], …) over one loop nest
// whose innermost strides are 0 or 1, 16 bytes along it at a time where its rows allow that. Bytes: each operand once.
#pragma once

#include <utility>

#include "cuda/tile/map.cuh"
#include "cuda/tile/strided.cuh"

namespace drupe::cuda {

// kPack elements from `from` on, or one element kPack times.
template <int kPack, class T>
__device__ __forceinline__ Pack<T, kPack> load_or_repeat(const T* from, bool repeat) {
  if (!repeat) return load_pack<kPack>(from);
  Pack<T, kPack> pack;
  const T value = *from;
#pragma unroll
  for (int k = 0; k < kPack; ++k) pack.element[k] = value;
  return pack;
}

// Which operands stand still along the innermost dimension: bit k for operand k.
template <int kOperands>
unsigned repeated(const Strided<kOperands>& nest) {
  unsigned mask = 0;
  for (int k = 0; k < kOperands; ++k) mask |= (nest.dims == 0 || nest.stride[k][nest.dims - 1] == 0 ? 1u : 0u) << k;
  return mask;
}

// How many elements from the first on may go in packs: none, all, or all but the end of a flat nest.
template <int kPack, int kOperands>
std::int64_t count_packed(const Strided<kOperands>& nest, const void* const (&pointers)[kOperands]) {
  const int inner = nest.dims - 1;
  if (inner < 0 || (inner > 0 && nest.extent[inner] % kPack != 0)) return 0;
  for (int k = 0; k < kOperands; ++k) {
    if (nest.stride[k][inner] == 0) continue;
    if (nest.stride[k][inner] != 1 || reinterpret_cast<std::uintptr_t>(pointers[k]) % 16 != 0) return 0;
    for (int d = 0; d < inner; ++d) {
      if (nest.stride[k][d] % kPack != 0) return 0;
    }
  }
  return nest.size / kPack * kPack;
}

// As map_kernel; a pack lies within one row of the nest.
template <int kPack, class F, class Y, std::size_t... kIndex, class... X>
__device__ __forceinline__ void broadcast_elements(std::index_sequence<kIndex...>, F f,
                                                   const Strided<1 + sizeof...(X)>& nest, unsigned repeats,
                                                   std::int64_t packed, Y* y, const X*... x) {
  for (std::int64_t i = global_thread() * kPack; i < packed; i += global_threads() * kPack) {
    const auto offset = locate(nest, i);
    Pack<Y, kPack> result;
    const auto apply = [&](const Pack<X, kPack>&... operands) {
#pragma unroll
      for (int k = 0; k < kPack; ++k) result.element[k] = f(operands.element[k]...);
    };
    apply(load_or_repeat<kPack>(x + offset.at[1 + kIndex], (repeats >> (1 + kIndex) & 1) != 0)...);
    store_pack(y + offset.at[0], result);
  }
  for (std::int64_t i = packed + global_thread(); i < nest.size; i += global_threads()) {
    const auto offset = locate(nest, i);
    y[offset.at[0]] = f(x[offset.at[1 + kIndex]]...);
  }
}

template <int kPack, class F, class Y, class... X>
__global__ __launch_bounds__(kMapThreads) void broadcast_kernel(F f, Strided<1 + sizeof...(X)> nest, unsigned repeats,
                                                                std::int64_t packed, Y* y, const X*... x) {
  broadcast_elements<kPack>(std::index_sequence_for<X...>(), f, nest, repeats, packed, y, x...);
}

// The loops' operands are y, then each x.
template <class F, class Y, class... X>
void broadcast(Stream stream, F f, const Loops& loops, Y* y, const X*... x) {
  const Strided<1 + sizeof...(X)> nest(loops);
  if (nest.size == 0) return;
  constexpr int kPack = 16 / kWidest<Y, X...>;
  const void* const pointers[] = {y, x...};
  const std::int64_t packed = count_packed<kPack>(nest, pointers);
  const LaunchConfig config{.grid = {blocks_for(nest.size, packed > 0 ? kPack * kMapPacks : kMapPacks)},
                            .block = {kMapThreads}};
  launch<broadcast_kernel<kPack, F, Y, X...>>(config, stream, f, nest, repeated(nest), packed, y, x...);
}

}  // namespace drupe::cuda
