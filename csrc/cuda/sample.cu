// sample. A block owns a row. One pass finds the first of the largest logits; the last token that top_k or top_p keeps
// comes of a radix search over the keys in their range, by counts and masses of 2048 bins in shared memory; then the
// row is narrowed, a warp's share at a time, to where the uniform falls. Weights are integers, so that the order of the
// additions is of no account. Bytes: the row twice, for each search up to three times more, mostly from L2.
#include "ops/sample.h"

#include <cmath>
#include <limits>
#include <platform/launch.cuh>

#include "cuda/tile/order.cuh"
#include "cuda/tile/philox.cuh"
#include "cuda/tile/row.cuh"
#include "cuda/tile/scan.cuh"

namespace drupe::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits, kPerThread = kDigits / kThreads;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
using Count = unsigned long long;
using Key = std::uint32_t;

// What some tokens weigh together, without those that equal the last kept one, of which there are `ties`.
struct Tally {
  Count mass, ties;
};

struct Storage {
  unsigned low[kDigits], high[kDigits];  // of a bin's count or mass
  unsigned digit;
  Count need;
  ScanStorage<Count, kThreads> scan;
  Ranked<Key> first[kWarps];
  Tally share[kWarps];
};

// A row, by blocks of memory (tile/row.cuh); what lies outside of it is -infinity.
template <class T>
struct Row {
  static constexpr int kPack = kPackSize<T>;
  const T* data;
  std::int64_t size;
  int skew;

  __device__ __forceinline__ Row(const SampleArgs& args, std::int64_t row)
      : data(static_cast<const T*>(args.logits) + row * args.size), size(args.size), skew(skew_of(data)) {}
  __device__ __forceinline__ std::int64_t blocks() const { return (size + skew + kPack - 1) / kPack; }
  __device__ __forceinline__ std::int64_t begin_of(std::int64_t block) const { return block * kPack - skew; }
  __device__ __forceinline__ void load(std::int64_t block, float (&values)[kPack]) const {
    load_block<kPack>(data, begin_of(block), size, true, -kInfinity, values);
  }
  // f(x, its index) for the thread's share of the row; -infinity beyond its ends.
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
    for (std::int64_t block = threadIdx.x; block < blocks(); block += kThreads) {
      float x[kPack];
      load(block, x);
#pragma unroll
      for (int e = 0; e < kPack; ++e) f(x[e], begin_of(block) + e);
    }
  }
};

// The same operations as on the CPU, to the last bit.
struct Weigher {
  float top, factor, least;
  int scale_bits;

  __device__ __forceinline__ Count operator()(float x) const {
    const float distance = x - top, exponent = distance * factor;
    if (exponent < kLeastExponent) return 0;
    const float n = std::nearbyint(exponent), f = std::fma(distance, factor, -n);
    constexpr Exp2Series kSeries;
    float power = kSeries.term[Exp2Series::kTerms - 1];
#pragma unroll
    for (int t = Exp2Series::kTerms - 2; t >= 0; --t) power = std::fma(power, f, kSeries.term[t]);
    const auto scale = static_cast<std::uint32_t>(127 + static_cast<int>(n) + scale_bits) << 23;
    return static_cast<Count>(std::nearbyint(power * std::bit_cast<float>(scale)));
  }
  __device__ __forceinline__ bool is_likely(float x) const { return (x - top) * factor >= least; }
};

// The tokens that are kept: those whose key is above `last`, and the first `ties` of its equals, `weight` each.
struct Cut {
  Key last;
  Count ties, weight;

  __device__ __forceinline__ Count mass_of(Tally tally, Count ties_before) const {
    const Count left = ties > ties_before ? ties - ties_before : 0;
    return tally.mass + (tally.ties < left ? tally.ties : left) * weight;
  }
};

__device__ __forceinline__ float value_of(Key key) {
  return std::bit_cast<float>(key >> 31 != 0 ? key ^ 0x80000000u : ~key);
}

// The first of the largest.
template <class T>
__device__ __forceinline__ Ranked<Key> first_of_row(const Row<T>& row, Storage& storage) {
  const int thread = static_cast<int>(threadIdx.x);
  Ranked<Key> best = Ranked<Key>::last();
  row.for_each([&](float x, std::int64_t i) {
    const Key key = order_key(x);
    if (key > best.key) best = {key, i};  // the thread's later ones come after it
  });
  best = first_of_lanes(best, kWarp);
  if (thread % kWarp == 0) storage.first[thread / kWarp] = best;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) {
    if (storage.first[warp].before(best)) best = storage.first[warp];
  }
  return best;
}

// A bin's sum in two words: of 64 bits, shared memory adds only by compare and swap.
__device__ __forceinline__ void add_to_bin(Storage& storage, unsigned digit, Count amount) {
  const auto low = static_cast<unsigned>(amount);
  const unsigned before = atomicAdd(&storage.low[digit], low);
  const unsigned high = static_cast<unsigned>(amount >> 32) + (before + low < before ? 1u : 0u);
  if (high != 0) atomicAdd(&storage.high[digit], high);
}

// Of the bins from the highest down, the one in which the sum reaches `need`; `need` becomes what it is to give.
__device__ __forceinline__ unsigned find_digit(Count& need, Storage& storage) {
  const int highest = kDigits - 1 - static_cast<int>(threadIdx.x) * kPerThread;
  Count bin[kPerThread], own = 0, total;
#pragma unroll
  for (int b = 0; b < kPerThread; ++b) {
    bin[b] = Count{storage.high[highest - b]} << 32 | storage.low[highest - b];
    own += bin[b];
  }
  Count before = block_scan<kThreads>(own, total, storage.scan);
  if (before < need && need <= before + own) {
#pragma unroll
    for (int b = 0; b < kPerThread; ++b) {
      if (before < need && need <= before + bin[b]) {
        storage.digit = static_cast<unsigned>(highest - b);
        storage.need = need - before;
      }
      before += bin[b];
    }
  }
  __syncthreads();
  need = storage.need;
  return storage.digit;
}

// Keeps the fewest tokens that are `need`, or by mass weigh as much.
template <class T>
__device__ __forceinline__ Cut search(const Row<T>& row, const Weigher& weigh, bool by_mass, Key highest, Count need,
                                      Storage& storage) {
  const int thread = static_cast<int>(threadIdx.x);
  Key low = order_key(-kInfinity), high = highest;
  for (;;) {
    int shift = 0;
    while ((high - low) >> shift >= kDigits) ++shift;
    __syncthreads();
    for (int digit = thread; digit < kDigits; digit += kThreads) storage.low[digit] = storage.high[digit] = 0;
    __syncthreads();
    row.for_each([&](float x, std::int64_t) {
      const Key key = order_key(x);
      if (key >= low && key <= high) add_to_bin(storage, (key - low) >> shift, by_mass ? weigh(x) : Count{1});
    });
    __syncthreads();
    low += find_digit(need, storage) << shift;
    if (shift == 0) break;
    const Key last = low + (Key{1} << shift) - 1;
    high = last < high ? last : high;
  }
  const Count weight = weigh(value_of(low));
  return {low, by_mass ? (need + weight - 1) / weight : need, weight};
}

template <class T>
__device__ __forceinline__ Tally tally_of(const float (&x)[Row<T>::kPack], const Weigher& weigh, const Cut& cut) {
  Tally tally{0, 0};
#pragma unroll
  for (int e = 0; e < Row<T>::kPack; ++e) {
    const Key key = order_key(x[e]);
    if (key < cut.last || !weigh.is_likely(x[e])) continue;
    if (key > cut.last) {
      tally.mass += weigh(x[e]);
    } else {
      ++tally.ties;
    }
  }
  return tally;
}

// storage.share[w] = what warp w's share of the blocks [begin, end) has; shares are `length` long.
template <class T>
__device__ __forceinline__ void tally_shares(const Row<T>& row, const Weigher& weigh, const Cut& cut,
                                             std::int64_t begin, std::int64_t end, std::int64_t length,
                                             Storage& storage) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t first = begin + warp * length, after = first + length < end ? first + length : end;
  Tally tally{0, 0};
  for (std::int64_t block = first + lane; block < after; block += kWarp) {
    float x[Row<T>::kPack];
    row.load(block, x);
    const Tally more = tally_of<T>(x, weigh, cut);
    tally.mass += more.mass;
    tally.ties += more.ties;
  }
  tally = {warp_reduce(tally.mass, Sum{}), warp_reduce(tally.ties, Sum{})};
  __syncthreads();
  if (lane == 0) storage.share[warp] = tally;
  __syncthreads();
}

__device__ __forceinline__ Count total_mass(const Cut& cut, const Storage& storage) {
  Tally total{0, 0};
  for (int warp = 0; warp < kWarps; ++warp) {
    total.mass += storage.share[warp].mass;
    total.ties += storage.share[warp].ties;
  }
  return cut.mass_of(total, 0);
}

// The token among a warp's blocks [begin, end) before which the kept ones weigh `target` or less; `passed` of those
// that equal the last come earlier. One lane returns it, the others -1.
template <class T>
__device__ __forceinline__ std::int64_t walk(const Row<T>& row, const Weigher& weigh, const Cut& cut,
                                             std::int64_t begin, std::int64_t end, Count target, Count passed) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (; begin < end; begin += kWarp) {
    float x[Row<T>::kPack];
    row.load(begin + lane < end ? begin + lane : row.blocks(), x);
    const Tally own = tally_of<T>(x, weigh, cut);
    Count ties = own.ties;  // up to this lane's
    for (int by = 1; by < kWarp; by *= 2) {
      const Count lower = __shfl_up_sync(kFullMask, ties, by);
      if (lane >= by) ties += lower;
    }
    const Count ties_before = passed + ties - own.ties, mass = cut.mass_of(own, ties_before);
    Count sum = mass;
    for (int by = 1; by < kWarp; by *= 2) {
      const Count lower = __shfl_up_sync(kFullMask, sum, by);
      if (lane >= by) sum += lower;
    }
    const Count total = __shfl_sync(kFullMask, sum, kWarp - 1);
    if (target >= total) {
      target -= total;
      passed += __shfl_sync(kFullMask, ties, kWarp - 1);
      continue;
    }
    if (target >= sum || target < sum - mass) return -1;
    target -= sum - mass;
    Count left = cut.ties > ties_before ? cut.ties - ties_before : 0;
    for (int e = 0; e < Row<T>::kPack; ++e) {
      const Key key = order_key(x[e]);
      Count weight = 0;
      if (key >= cut.last && weigh.is_likely(x[e])) weight = key > cut.last || left-- > 0 ? weigh(x[e]) : 0;
      if (target < weight) return row.begin_of(begin + lane) + e;
      target -= weight;
    }
  }
  return -1;
}

template <class T>
__device__ __forceinline__ void draw(const SampleArgs& args, std::int64_t r, const Row<T>& row, Weigher weigh,
                                     Key highest, Storage& storage) {
  Cut cut{0, 0, 0};
  std::int64_t begin = 0, end = row.blocks(), length = (end + kWarps - 1) / kWarps;
  const float least = weigh.least;
  weigh.least = -kInfinity;
  if (args.k < args.size) cut = search(row, weigh, false, highest, static_cast<Count>(args.k), storage);
  if (args.p < 1) {
    tally_shares(row, weigh, cut, begin, end, length, storage);
    const Count total = total_mass(cut, storage);
    const auto need = static_cast<Count>(std::ceil(args.p * static_cast<double>(total)));
    cut = search(row, weigh, true, highest, need < 1 ? 1 : need < total ? need : total, storage);
  }
  weigh.least = least;
  tally_shares(row, weigh, cut, begin, end, length, storage);
  const Count total = total_mass(cut, storage);
  const Words words = philox(args.seed, 0, static_cast<std::uint64_t>(r) + args.offset);
  const double uniform = (words.word[0] >> 8) * 0x1p-24 + (words.word[1] >> 8) * 0x1p-48;
  auto target = static_cast<Count>(uniform * static_cast<double>(total));
  if (target >= total) target = total - 1;
  Count passed = 0;
  for (;;) {
    int warp = 0;
    for (;; ++warp) {
      const Tally share = storage.share[warp];
      const Count mass = cut.mass_of(share, passed);
      if (target < mass) break;
      target -= mass;
      passed += share.ties;
    }
    begin += warp * length;
    end = begin + length < end ? begin + length : end;
    if (end - begin <= 2 * kWarp) break;
    length = (end - begin + kWarps - 1) / kWarps;
    tally_shares(row, weigh, cut, begin, end, length, storage);
  }
  if (threadIdx.x >= kWarp) return;
  const std::int64_t index = walk(row, weigh, cut, begin, end, target, passed);
  if (index >= 0) args.indices[r] = index;
}

template <class T>
__global__ __launch_bounds__(kThreads) void sample_kernel(SampleArgs args) {
  auto& storage = shared_storage<Storage>();
  const std::int64_t r = blockIdx.x;
  const Row<T> row(args, r);
  const Ranked<Key> first = first_of_row(row, storage);
  std::int64_t index = first.index;
  if (first.key == ~Key{0}) index = static_cast<std::int64_t>(SampleFault::nan);
  if (first.key == order_key(kInfinity)) index = static_cast<std::int64_t>(SampleFault::infinite);
  if (first.key == order_key(-kInfinity)) index = static_cast<std::int64_t>(SampleFault::empty);
  if (index >= 0 && args.factor != 0) {
    return draw(args, r, row, {value_of(first.key), args.factor, args.least, args.scale_bits}, first.key, storage);
  }
  if (threadIdx.x == 0) args.indices[r] = index;
}

template <class T>
void run(const SampleArgs& args, Stream stream) {
  launch<sample_kernel<T>>(
      {.grid = {static_cast<unsigned>(args.rows)}, .block = {kThreads}, .shared_bytes = sizeof(Storage)}, stream, args);
}

}  // namespace

void sample(const SampleArgs& args, Stream stream) {
  switch (args.dtype) {
    case Dtype::f32:
      return run<float>(args, stream);
    case Dtype::f16:
      return run<Float16>(args, stream);
    default:
      return run<BFloat16>(args, stream);
  }
}

}  // namespace drupe::cuda
