// The sweeps of losses that are computed element by element. A sum goes in two passes of a fixed order: each thread
// adds up packs in double precision, its block these; one block the blocks'. Bytes: each operand once.
#pragma once

#include <algorithm>

#include "core/cuda.h"
#include "cuda/tile/map.cuh"
#include "cuda/tile/reduce.cuh"
#include "ops/reduction.h"

namespace drupe::cuda {

inline constexpr std::int64_t kMostPartials = 1024;

// Elements that a thread takes at once: 16 bytes of losses.
template <class S>
inline constexpr int kLossPack = kPackSize<Accumulator<S>>;

// Contiguous arrays; where one is null, ones stand for it.
template <class S, int kOperands>
struct LossOperands {
  const S* x[kOperands];
};

template <class S, int kOperands>
struct LossPack {
  Accumulator<S> x[kLossPack<S>][kOperands];
};

// The operands of the `count` elements from i on, of which `packed` says that they may be loaded as one pack.
template <class S, int kOperands>
__device__ __forceinline__ LossPack<S, kOperands> load_operands(const LossOperands<S, kOperands>& operands,
                                                                std::int64_t i, int count, bool packed) {
  LossPack<S, kOperands> result;
#pragma unroll
  for (int k = 0; k < kOperands; ++k) {
    const S* x = operands.x[k];
    if (x != nullptr && packed) {
      const auto pack = load_pack<kLossPack<S>>(x + i);
#pragma unroll
      for (int e = 0; e < kLossPack<S>; ++e) result.x[e][k] = widen(pack.element[e]);
    } else {
#pragma unroll
      for (int e = 0; e < kLossPack<S>; ++e) {
        result.x[e][k] = x != nullptr && e < count ? widen(x[i + e]) : Accumulator<S>(1);
      }
    }
  }
  return result;
}

template <class A, int kPack>
__device__ __forceinline__ void store_elements(A* to, const Pack<A, kPack>& pack, int count, bool packed) {
  if (packed) {
    store_pack(to, pack);
  } else {
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      if (e < count) to[e] = pack.element[e];
    }
  }
}

__device__ __forceinline__ int count_in_pack(std::int64_t rest, int pack) {
  return static_cast<int>(rest < pack ? rest : pack);
}

// Losses one by one: f(x) of one element's operands.
template <class F, class S, int kOperands>
__global__ __launch_bounds__(kMapThreads) void loss_map_kernel(F f, LossOperands<S, kOperands> operands,
                                                               std::int64_t size, bool aligned, Accumulator<S>* loss) {
  constexpr int kPack = kLossPack<S>;
  for (std::int64_t i = global_thread() * kPack; i < size; i += global_threads() * kPack) {
    const int count = count_in_pack(size - i, kPack);
    const bool packed = aligned && count == kPack;
    const auto x = load_operands(operands, i, count, packed);
    Pack<Accumulator<S>, kPack> result;
#pragma unroll
    for (int e = 0; e < kPack; ++e) result.element[e] = f(x.x[e]);
    store_elements(loss + i, result, count, packed);
  }
}

// The sums of the blocks; with one block the loss itself.
template <class F, class S, int kOperands>
__global__ __launch_bounds__(kMapThreads) void loss_sum_kernel(F f, LossOperands<S, kOperands> operands,
                                                               std::int64_t size, bool aligned, double divisor,
                                                               double* partial, Accumulator<S>* loss) {
  auto& storage = shared_storage<ReduceStorage<double, kMapThreads>>();
  constexpr int kPack = kLossPack<S>;
  double sum = 0;
  for (std::int64_t i = global_thread() * kPack; i < size; i += global_threads() * kPack) {
    const int count = count_in_pack(size - i, kPack);
    const auto x = load_operands(operands, i, count, aligned && count == kPack);
    Accumulator<S> losses = 0;
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      if (e < count) losses += f(x.x[e]);
    }
    sum += static_cast<double>(losses);
  }
  sum = block_reduce<kMapThreads>(sum, Sum(), storage);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) {
    *loss = static_cast<Accumulator<S>>(sum / divisor);
  } else {
    partial[blockIdx.x] = sum;
  }
}

template <class A>
__global__ __launch_bounds__(kMapThreads) void loss_finish_kernel(const double* partial, int partials, double divisor,
                                                                  A* loss) {
  auto& storage = shared_storage<ReduceStorage<double, kMapThreads>>();
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < partials; i += kMapThreads) sum += partial[i];
  sum = block_reduce<kMapThreads>(sum, Sum(), storage);
  if (threadIdx.x == 0) *loss = static_cast<A>(sum / divisor);
}

template <class S, int kOperands>
bool are_aligned(const LossOperands<S, kOperands>& operands) {
  return std::all_of(std::begin(operands.x), std::end(operands.x), [](const S* x) { return is_pack_aligned(x); });
}

// f(x) gives the loss of one element from its operands' values x[kOperands]; `loss` takes `size` results for "none",
// else one.
template <class F, class S, int kOperands>
void reduce_loss(Stream stream, F f, const LossOperands<S, kOperands>& operands, std::int64_t size, Reduction reduction,
                 Accumulator<S>* loss) {
  const unsigned blocks = blocks_for(size, kLossPack<S> * kMapPacks);
  const bool aligned = are_aligned(operands) && is_pack_aligned(loss);
  if (reduction == Reduction::none) {
    if (size == 0) return;
    launch<loss_map_kernel<F, S, kOperands>>({.grid = {blocks}, .block = {kMapThreads}}, stream, f, operands, size,
                                             aligned, loss);
    return;
  }
  const double divisor = reduction == Reduction::mean && size > 0 ? static_cast<double>(size) : 1;
  const auto partials = static_cast<unsigned>(std::min<std::int64_t>(blocks, kMostPartials));
  const std::shared_ptr<void> scratch = allocate(partials * sizeof(double), {DeviceType::cuda, stream.device});
  auto* partial = static_cast<double*>(scratch.get());
  constexpr std::size_t kShared = sizeof(ReduceStorage<double, kMapThreads>);
  launch<loss_sum_kernel<F, S, kOperands>>({.grid = {partials}, .block = {kMapThreads}, .shared_bytes = kShared},
                                           stream, f, operands, size, are_aligned(operands), divisor, partial, loss);
  if (partials == 1) return;
  launch<loss_finish_kernel<Accumulator<S>>>({.grid = {1}, .block = {kMapThreads}, .shared_bytes = kShared}, stream,
                                             partial, static_cast<int>(partials), divisor, loss);
}

// Gradients by two of the operands; where they go, null for nowhere.
template <class A>
struct Slopes {
  A first, second;
};
template <class S>
struct Gradients {
  S* first;
  S* second;
};

// The gradients share * dloss * f(x), with dloss one value, or one an element with `each`.
template <class F, class S, int kOperands>
__global__ __launch_bounds__(kMapThreads) void loss_backward_kernel(F f, LossOperands<S, kOperands> operands,
                                                                    std::int64_t size, bool aligned, bool each,
                                                                    double share, const Accumulator<S>* dloss,
                                                                    Gradients<S> gradients) {
  using A = Accumulator<S>;
  constexpr int kPack = kLossPack<S>;
  const A whole = each ? A(0) : static_cast<A>(static_cast<double>(*dloss) * share);
  for (std::int64_t i = global_thread() * kPack; i < size; i += global_threads() * kPack) {
    const int count = count_in_pack(size - i, kPack);
    const bool packed = aligned && count == kPack;
    const auto x = load_operands(operands, i, count, packed);
    Pack<S, kPack> first, second;
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      const A scale = each ? (e < count ? dloss[i + e] : A(0)) : whole;
      const Slopes<A> slopes = f(x.x[e]);
      first.element[e] = narrow<S>(scale * slopes.first);
      second.element[e] = narrow<S>(scale * slopes.second);
    }
    if (gradients.first != nullptr) store_elements(gradients.first + i, first, count, packed);
    if (gradients.second != nullptr) store_elements(gradients.second + i, second, count, packed);
  }
}

// f(x) gives the slopes of an element's loss.
template <class F, class S, int kOperands>
void spread_loss(Stream stream, F f, const LossOperands<S, kOperands>& operands, std::int64_t size, Reduction reduction,
                 const Accumulator<S>* dloss, Gradients<S> gradients) {
  if (size == 0) return;
  const double share = reduction == Reduction::mean ? 1 / static_cast<double>(size) : 1;
  const bool aligned = are_aligned(operands) && is_pack_aligned(gradients.first, gradients.second);
  launch<loss_backward_kernel<F, S, kOperands>>(
      {.grid = {blocks_for(size, kLossPack<S> * kMapPacks)}, .block = {kMapThreads}}, stream, f, operands, size,
      aligned, reduction == Reduction::none, share, dloss, gradients);
}

}  // namespace drupe::cuda
