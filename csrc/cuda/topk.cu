// topk. Short rows and few results: a warp finds one after the other, its row in L1. Otherwise a block finds the key of
// the last result by a radix search (256 counts in shared memory for each of the key's bytes), then gathers, in the
// order of the indices, what comes before it and as many of its equals as there is room for. Results are then sorted,
// by bitonic networks in shared memory, or in scratch where they are too many. Bytes: x once for each byte of a key,
// and once more, mostly from L2.
#include "ops/topk.h"

#include <memory>

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/tile/map.cuh"
#include "cuda/tile/order.cuh"
#include "cuda/tile/reduce.cuh"
#include "cuda/tile/strided.cuh"

namespace drupe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kShortRow = 1024, kFewResults = kWarp;  // of the search by warps
constexpr std::int64_t kSortedAtOnce = 2048;                   // results that shared memory sorts
constexpr int kDigits = 256;
using Count = unsigned long long;

// Of equal rank: NaN comes last among the smallest.
template <class T>
__device__ __forceinline__ OrderKey<T> key_of(const TopkArgs& args, const T* x, std::int64_t i) {
  const OrderKey<T> key = order_key(x[i]);
  return args.largest ? key : ~key;
}

template <class T>
__device__ __forceinline__ void store_result(const TopkArgs& args, const T* x, std::int64_t row, std::int64_t place,
                                             std::int64_t index) {
  args.indices[row * args.k + place] = index;
  static_cast<T*>(args.values)[row * args.k + place] = x[index];
}

template <class T>
__global__ __launch_bounds__(kThreads) void topk_warp_kernel(TopkArgs args) {
  using K = OrderKey<T>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = std::int64_t{blockIdx.x} * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  if (row >= args.rows) return;  // the whole warp
  const T* x = static_cast<const T*>(args.x) + row * args.size;
  const int k = static_cast<int>(args.k);
  Ranked<K> previous{~K(0), -1}, mine = Ranked<K>::last();  // lane r keeps the r-th
  for (int r = 0; r < k; ++r) {
    Ranked<K> best = Ranked<K>::last();
    for (std::int64_t i = lane; i < args.size; i += kWarp) {
      const Ranked<K> other{key_of(args, x, i), i};
      if (previous.before(other) && other.before(best)) best = other;
    }
    previous = first_of_lanes(best, kWarp);
    if (lane == r) mine = previous;
  }
  int place = lane;
  if (!args.sorted) {
    place = 0;
    for (int r = 0; r < k; ++r) place += __shfl_sync(kFullMask, mine.index, r) < mine.index;
  }
  if (lane < k) store_result(args, x, row, place, mine.index);
}

template <class C>
struct ScanStorage {
  C warp[kThreads / kWarp];
};
template <class C>
struct Scan {
  C before, total;
};

// How much the threads before this one have, and all of them. The storage may be used again after the next but one
// __syncthreads.
template <class C>
__device__ __forceinline__ Scan<C> block_scan(C own, ScanStorage<C>& storage) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  C sum = own;
  for (int by = 1; by < kWarp; by *= 2) {
    const C lower = __shfl_up_sync(kFullMask, sum, by);
    if (lane >= by) sum += lower;
  }
  if (lane == kWarp - 1) storage.warp[warp] = sum;
  __syncthreads();
  Scan<C> result{sum - own, C(0)};
  for (int other = 0; other < kThreads / kWarp; ++other) {
    if (other < warp) result.before += storage.warp[other];
    result.total += storage.warp[other];
  }
  return result;
}

struct SelectStorage {
  Count bins[kDigits];
  ScanStorage<Count> scan;
  ScanStorage<unsigned> places[2];
  int digit;
  Count wanted;
};

// The key of the k-th result; `wanted` becomes the number of results of just that key.
template <class T>
__device__ __forceinline__ OrderKey<T> last_key(const TopkArgs& args, const T* x, Count& wanted,
                                                SelectStorage& storage) {
  using K = OrderKey<T>;
  static_assert(kDigits == kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  K known = 0, mask = 0;
  for (int shift = 8 * static_cast<int>(sizeof(K)) - 8; shift >= 0; shift -= 8) {
    storage.bins[thread] = 0;
    __syncthreads();
    for (std::int64_t i = thread; i < args.size; i += kThreads) {
      const K key = key_of(args, x, i);
      if ((key & mask) == known) atomicAdd(&storage.bins[key >> shift & (kDigits - 1)], Count(1));
    }
    __syncthreads();
    const int digit = kDigits - 1 - thread;
    const Count own = storage.bins[digit], above = block_scan(own, storage.scan).before;
    if (above < wanted && wanted <= above + own) {
      storage.digit = digit;
      storage.wanted = wanted - above;
    }
    __syncthreads();
    known |= static_cast<K>(storage.digit) << shift;
    mask |= static_cast<K>(kDigits - 1) << shift;
    wanted = storage.wanted;
    __syncthreads();
  }
  return known;
}

template <class T>
__global__ __launch_bounds__(kThreads) void topk_select_kernel(TopkArgs args) {
  auto& storage = shared_storage<SelectStorage>();
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(args.x) + row * args.size;
  Count room = static_cast<Count>(args.k);
  const OrderKey<T> last = last_key(args, x, room, storage);
  Count greater = 0, equal = 0;  // before this stretch of the row
  int turn = 0;
  for (std::int64_t first = 0; first < args.size; first += kThreads) {
    const std::int64_t i = first + thread;
    const OrderKey<T> key = i < args.size ? key_of(args, x, i) : 0;
    const bool is_greater = i < args.size && key > last, is_equal = i < args.size && key == last;
    const Scan<unsigned> scan = block_scan(is_greater + (is_equal ? 0x10000u : 0u), storage.places[turn]);
    turn ^= 1;
    const Count equals = equal + (scan.before >> 16);
    if (is_greater || (is_equal && equals < room)) {
      const Count place = greater + (scan.before & 0xffff) + (equals < room ? equals : room);
      store_result(args, x, row, static_cast<std::int64_t>(place), i);
    }
    greater += scan.total & 0xffff;
    equal += scan.total >> 16;
    if (greater + (equal < room ? equal : room) == static_cast<Count>(args.k)) break;
  }
}

// One comparison of a bitonic network over results of `stage` that are sorted in alternating directions.
template <class K>
__device__ __forceinline__ void compare_exchange(Ranked<K>* results, std::int64_t pair, std::int64_t stage,
                                                 std::int64_t step) {
  const std::int64_t i = 2 * pair - (pair & (step - 1)), j = i + step;
  const Ranked<K> low = results[i], high = results[j];
  if (((i & stage) == 0) != high.before(low)) return;
  results[i] = high;
  results[j] = low;
}

template <class T>
__device__ __forceinline__ Ranked<OrderKey<T>> load_result(const TopkArgs& args, const T* x, std::int64_t row,
                                                           std::int64_t place) {
  if (place >= args.k) return Ranked<OrderKey<T>>::last();
  const std::int64_t index = args.indices[row * args.k + place];
  return {key_of(args, x, index), index};
}

template <class K>
struct SortStorage {
  Ranked<K> results[kSortedAtOnce];
};

// `padded`: k rounded up to a power of two.
template <class T>
__global__ __launch_bounds__(kThreads) void topk_sort_kernel(TopkArgs args, int padded) {
  auto& storage = shared_storage<SortStorage<OrderKey<T>>>();
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(args.x) + row * args.size;
  for (int i = thread; i < padded; i += kThreads) storage.results[i] = load_result(args, x, row, i);
  for (int stage = 2; stage <= padded; stage *= 2) {
    for (int step = stage / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int pair = thread; pair < padded / 2; pair += kThreads) {
        compare_exchange(storage.results, pair, stage, step);
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < args.k; i += kThreads) store_result(args, x, row, i, storage.results[i].index);
}

// The same with a launch for each step, from and to scratch of (rows, padded).
template <class T>
__global__ __launch_bounds__(kThreads) void topk_load_kernel(TopkArgs args, int log_padded,
                                                             Ranked<OrderKey<T>>* results) {
  for (std::int64_t i = global_thread(); i < args.rows << log_padded; i += global_threads()) {
    const std::int64_t row = i >> log_padded;
    results[i] = load_result(args, static_cast<const T*>(args.x) + row * args.size, row, i - (row << log_padded));
  }
}
template <class K>
__global__ __launch_bounds__(kThreads) void topk_step_kernel(std::int64_t pairs, int log_padded, std::int64_t stage,
                                                             std::int64_t step, Ranked<K>* results) {
  const int log_pairs = log_padded - 1;
  for (std::int64_t i = global_thread(); i < pairs; i += global_threads()) {
    const std::int64_t row = i >> log_pairs;
    compare_exchange(results + (row << log_padded), i - (row << log_pairs), stage, step);
  }
}
template <class T>
__global__ __launch_bounds__(kThreads) void topk_store_kernel(TopkArgs args, int log_padded,
                                                              const Ranked<OrderKey<T>>* results) {
  for (std::int64_t i = global_thread(); i < args.rows << log_padded; i += global_threads()) {
    const std::int64_t row = i >> log_padded, place = i - (row << log_padded);
    if (place >= args.k) continue;
    store_result(args, static_cast<const T*>(args.x) + row * args.size, row, place, results[i].index);
  }
}

template <class T>
void sort_in_scratch(const TopkArgs& args, Stream stream, int log_padded) {
  using K = OrderKey<T>;
  const std::int64_t padded = std::int64_t{1} << log_padded, count = args.rows << log_padded;
  const auto scratch = allocate(static_cast<std::size_t>(count) * sizeof(Ranked<K>), {DeviceType::cuda, stream.device});
  auto* results = static_cast<Ranked<K>*>(scratch.get());
  const LaunchConfig whole{.grid = {blocks_for(count)}, .block = {kThreads}};
  launch<topk_load_kernel<T>>(whole, stream, args, log_padded, results);
  for (std::int64_t stage = 2; stage <= padded; stage *= 2) {
    for (std::int64_t step = stage / 2; step > 0; step /= 2) {
      launch<topk_step_kernel<K>>({.grid = {blocks_for(count / 2)}, .block = {kThreads}}, stream, count / 2, log_padded,
                                  stage, step, results);
    }
  }
  launch<topk_store_kernel<T>>(whole, stream, args, log_padded, static_cast<const Ranked<K>*>(results));
}

template <class T>
void run(const TopkArgs& args, Stream stream) {
  if (args.size <= kShortRow && args.k <= kFewResults) {
    return launch<topk_warp_kernel<T>>({.grid = {blocks_for(args.rows, 1, kThreads / kWarp)}, .block = {kThreads}},
                                       stream, args);
  }
  LaunchConfig config{
      .grid = {static_cast<unsigned>(args.rows)}, .block = {kThreads}, .shared_bytes = sizeof(SelectStorage)};
  launch<topk_select_kernel<T>>(config, stream, args);
  if (!args.sorted) return;
  int log_padded = 0;
  while (std::int64_t{1} << log_padded < args.k) ++log_padded;
  if (args.k > kSortedAtOnce) return sort_in_scratch<T>(args, stream, log_padded);
  config.shared_bytes = sizeof(SortStorage<OrderKey<T>>);
  launch<topk_sort_kernel<T>>(config, stream, args, 1 << log_padded);
}

template <class T>
__global__ __launch_bounds__(kThreads) void topk_backward_kernel(TopkBackwardArgs args, Divisor k) {
  for (std::int64_t i = global_thread(); i < args.rows * args.k; i += global_threads()) {
    static_cast<T*>(args.dx)[i / k * args.size + args.indices[i]] = static_cast<const T*>(args.dy)[i];
  }
}

}  // namespace

void topk(const TopkArgs& args, Stream stream) {
  dispatch_any(args.dtype,
               [&]<class T>() { run<std::conditional_t<std::is_same_v<T, bool>, std::uint8_t, T>>(args, stream); });
}

void topk_backward(const TopkBackwardArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class T>() {
    launch<topk_backward_kernel<T>>({.grid = {blocks_for(args.rows * args.k)}, .block = {kThreads}}, stream, args,
                                    Divisor(args.k));
  });
}

}  // namespace drupe::cuda
