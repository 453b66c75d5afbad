// argmax and argmin. Lanes of a warp, or a block, walk the 16-byte blocks of memory that hold a row; several blocks
// share a long row where rows are few, and a second pass finds the first of what they found. Bytes: x once.
#include <memory>

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/tile/map.cuh"
#include "cuda/tile/order.cuh"
#include "cuda/tile/row.cuh"
#include "ops/topk.h"

namespace drupe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMinShare = 8;  // 16-byte blocks of a thread, before a row is shared

template <class K>
struct Plan {
  ArgExtremumArgs args;
  int lanes;
  std::int64_t shares, length;  // of each row; in 16-byte blocks
  Ranked<K>* partial;           // (shares, rows), in place of the indices where there are several shares
};

template <class K>
struct Storage {
  Ranked<K> first[kThreads / kWarp];
};

template <class K>
__device__ __forceinline__ Ranked<K> first_of_group(Ranked<K> own, int lanes, Storage<K>& storage) {
  own = first_of_lanes(own, lanes < kWarp ? lanes : kWarp);
  if (lanes <= kWarp) return own;
  if (threadIdx.x % kWarp == 0) storage.first[threadIdx.x / kWarp] = own;
  __syncthreads();
  for (int warp = 0; warp < kThreads / kWarp; ++warp) {
    const Ranked<K> other = storage.first[warp];
    if (other.before(own)) own = other;
  }
  return own;
}

// NaN is the extreme either way.
template <class T>
__device__ __forceinline__ OrderKey<T> extreme_key(T stored, bool largest) {
  using K = OrderKey<T>;
  const K key = order_key(stored);
  if (largest || (std::is_floating_point_v<Accumulator<T>> && key == ~K(0))) return key;
  return ~key;
}

template <class T>
__global__ __launch_bounds__(kThreads) void arg_extremum_kernel(Plan<OrderKey<T>> plan) {
  using K = OrderKey<T>;
  constexpr int kPack = kPackSize<T>;
  auto& storage = shared_storage<Storage<K>>();
  const std::int64_t rows = plan.args.rows, size = plan.args.size;
  const int per_block = kThreads / plan.lanes, lane = static_cast<int>(threadIdx.x) % plan.lanes;
  const std::int64_t unit = std::int64_t{blockIdx.x} * per_block + static_cast<int>(threadIdx.x) / plan.lanes;
  const bool counts = unit < rows * plan.shares;
  Ranked<K> own = Ranked<K>::last();
  if (counts) {
    // Shared rows are few.
    const std::int64_t share = plan.shares == 1 ? 0 : static_cast<unsigned>(unit) / static_cast<unsigned>(rows);
    const std::int64_t row = unit - share * rows;
    const T* x = static_cast<const T*>(plan.args.x) + row * size;
    const std::int64_t skew = skew_of(x), end = (share + 1) * plan.length * kPack - skew;
    const std::int64_t last = end < size ? end : size;
    const bool largest = plan.args.largest;
    for (std::int64_t begin = (share * plan.length + lane) * kPack - skew; begin < last; begin += plan.lanes * kPack) {
      if (begin >= 0 && begin + kPack <= size) {
        const auto pack = load_pack<kPack>(x + begin);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          const Ranked<K> other{extreme_key(pack.element[k], largest), begin + k};
          if (other.before(own)) own = other;
        }
      } else {
        for (int k = 0; k < kPack; ++k) {
          const std::int64_t at = begin + k;
          if (at < 0 || at >= size) continue;
          const Ranked<K> other{extreme_key(x[at], largest), at};
          if (other.before(own)) own = other;
        }
      }
    }
  }
  own = first_of_group(own, plan.lanes, storage);
  if (!counts || lane != 0) return;
  if (plan.partial) {
    plan.partial[unit] = own;
  } else {
    plan.args.indices[unit] = own.index;
  }
}

template <class K>
__global__ __launch_bounds__(kThreads) void arg_extremum_second_kernel(Plan<K> plan) {
  auto& storage = shared_storage<Storage<K>>();
  Ranked<K> own = Ranked<K>::last();
  for (std::int64_t share = threadIdx.x; share < plan.shares; share += kThreads) {
    const Ranked<K> other = plan.partial[share * plan.args.rows + blockIdx.x];
    if (other.before(own)) own = other;
  }
  own = first_of_group(own, kThreads, storage);
  if (threadIdx.x == 0) plan.args.indices[blockIdx.x] = own.index;
}

template <class T>
void run(const ArgExtremumArgs& args, Stream stream) {
  using K = OrderKey<T>;
  constexpr std::int64_t kPack = kPackSize<T>;
  const bool skewed = !is_pack_aligned(args.x) || args.size % kPack != 0;
  const std::int64_t blocks = (args.size + (skewed ? kPack - 1 : 0) + kPack - 1) / kPack;
  Plan<K> plan{
      .args = args, .lanes = choose_row_lanes(blocks, kThreads), .shares = 1, .length = blocks, .partial = nullptr};
  std::shared_ptr<void> scratch;
  if (plan.lanes == kThreads) {
    plan.length = choose_length(blocks, args.rows, kThreads * kMinShare, blocks);
    plan.shares = (blocks + plan.length - 1) / plan.length;
  }
  if (plan.shares > 1) {
    const auto count = static_cast<std::size_t>(args.rows * plan.shares);
    scratch = allocate(count * sizeof(Ranked<K>), {DeviceType::cuda, stream.device});
    plan.partial = static_cast<Ranked<K>*>(scratch.get());
  }
  launch<arg_extremum_kernel<T>>({.grid = {blocks_for(args.rows * plan.shares, 1, kThreads / plan.lanes)},
                                  .block = {kThreads},
                                  .shared_bytes = sizeof(Storage<K>)},
                                 stream, plan);
  if (!plan.partial) return;
  launch<arg_extremum_second_kernel<K>>(
      {.grid = {static_cast<unsigned>(args.rows)}, .block = {kThreads}, .shared_bytes = sizeof(Storage<K>)}, stream,
      plan);
}

}  // namespace

void arg_extremum(const ArgExtremumArgs& args, Stream stream) {
  dispatch_any(args.dtype,
               [&]<class T>() { run<std::conditional_t<std::is_same_v<T, bool>, std::uint8_t, T>>(args, stream); });
}

}  // namespace drupe::cuda
