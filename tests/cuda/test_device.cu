// Each intrinsic of platform/device.cuh against a plain C++ expectation.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <platform/launch.cuh>
#include <platform/ptx.cuh>

#include "cuda/selftest.h"
#include "cuda/tile/reduce.cuh"

namespace drupe::selftest {
namespace {

using namespace drupe::cuda;

// ---- shuffles: rows of 32 results: by index, xor, up, down
template <class T>
__global__ void shuffle_kernel(T* out, int by, int width) {
  const int lane = static_cast<int>(threadIdx.x);
  const T value = static_cast<T>(100 + lane);
  out[lane] = __shfl_sync(kFullMask, value, by, width);
  out[32 + lane] = __shfl_xor_sync(kFullMask, value, by, width);
  out[64 + lane] = __shfl_up_sync(kFullMask, value, static_cast<unsigned>(by), width);
  out[96 + lane] = __shfl_down_sync(kFullMask, value, static_cast<unsigned>(by), width);
}

template <class T>
void check_shuffles(int by, int width) {
  const Array<T> out(128);
  launch<shuffle_kernel<T>>({.grid = {1}, .block = {32}}, stream(), out.data(), by, width);
  const std::vector<T> got = out.values();
  for (int lane = 0; lane < 32; ++lane) {
    const int start = lane / width * width, other = lane ^ by;
    const int from[] = {start + by % width, other / width > lane / width ? lane : other,
                        lane - by < start ? lane : lane - by, lane + by >= start + width ? lane : lane + by};
    for (int row = 0; row < 4; ++row) {
      const auto at = static_cast<std::size_t>(32 * row + lane);
      require_equal(got[at], 100 + from[row], "width " + std::to_string(width) + ": shuffled", at);
    }
  }
}

const Register kShuffles("device.shuffles", [] {
  for (const int width : {1, 2, 4, 8, 16, 32}) {
    for (const int by : {0, 1, 3, 5, 15, 16, 17, 31}) {
      check_shuffles<int>(by, width);
      check_shuffles<double>(by, width);
    }
  }
  check_shuffles<float>(7, 16);
  check_shuffles<unsigned>(7, 32);
  check_shuffles<unsigned long long>(9, 32);
});

// ---- votes, by the whole warp and by each half with a mask of its own
__global__ void vote_kernel(unsigned* out, unsigned votes) {
  const unsigned lane = threadIdx.x;
  const int vote = votes >> lane & 1u;
  out[lane] = __ballot_sync(kFullMask, vote);
  out[32 + lane] = static_cast<unsigned>(__any_sync(kFullMask, vote) != 0);
  out[64 + lane] = static_cast<unsigned>(__all_sync(kFullMask, vote) != 0);
  if (lane < 16) {
    out[96 + lane] = __ballot_sync(0x0000ffffu, vote);
  } else {
    out[96 + lane] = __ballot_sync(0xffff0000u, vote);
  }
  __syncwarp();
}

const Register kVotes("device.votes", [] {
  for (const unsigned votes : {0u, 1u, 0x80000000u, 0x12345678u, 0xffffffffu}) {
    const Array<unsigned> out(128);
    launch<vote_kernel>({.grid = {1}, .block = {32}}, stream(), out.data(), votes);
    const std::vector<unsigned> got = out.values();
    for (std::size_t lane = 0; lane < 32; ++lane) {
      require_equal(got[lane], votes, "ballot", lane);
      require_equal(got[32 + lane], votes != 0, "any", lane);
      require_equal(got[64 + lane], votes == 0xffffffffu, "all", lane);
      require_equal(got[96 + lane], votes & (lane < 16 ? 0x0000ffffu : 0xffff0000u), "half a ballot", lane);
    }
  }
});

// ---- bits
__global__ void bits_kernel(unsigned* out, unsigned a, unsigned b) {
  out[0] = static_cast<unsigned>(__popc(a));
  out[1] = static_cast<unsigned>(__ffs(static_cast<int>(a)));
  out[2] = static_cast<unsigned>(__clz(static_cast<int>(a)));
  out[3] = __umulhi(a, b);
}

const Register kBits("device.bits", [] {
  for (const unsigned a : {0u, 1u, 2u, 0x00f0u, 0x80000000u, 0xdeadbeefu, 0xffffffffu}) {
    for (const unsigned b : {0u, 3u, 0xcafebabeu, 0xffffffffu}) {
      const Array<unsigned> out(4);
      launch<bits_kernel>({.grid = {1}, .block = {1}}, stream(), out.data(), a, b);
      const std::vector<unsigned> got = out.values();
      unsigned ones = 0, first = 0, zeros = 0;
      for (unsigned bit = 0; bit < 32; ++bit) ones += a >> bit & 1u;
      while (a != 0 && !(a >> first++ & 1u)) {
      }
      while (zeros < 32 && !(a >> (31 - zeros) & 1u)) ++zeros;
      const unsigned expected[] = {ones, first, zeros,
                                   static_cast<unsigned>(static_cast<std::uint64_t>(a) * b / 0x100000000u)};
      for (std::size_t i = 0; i < 4; ++i) require_equal(got[i], expected[i], "bits of " + std::to_string(a), i);
    }
  }
});

// ---- atomics, on global and on shared memory
template <class T>
struct Counters {
  T sum, largest, smallest, last, winner;
};

template <class T>
__global__ void atomics_kernel(Counters<T>* global, Counters<T>* copied, T* before) {
  auto& shared = shared_storage<Counters<T>>();
  if (threadIdx.x == 0) shared = {T(0), T(0), T(1000), T(0), T(0)};
  __syncthreads();
  const T own = static_cast<T>(threadIdx.x + 1);
  for (Counters<T>* counters : {global, &shared}) {
    const T old = atomicAdd(&counters->sum, T(1));
    if (counters == global) before[threadIdx.x] = old;
    if constexpr (!std::is_floating_point_v<T>) {
      atomicMax(&counters->largest, own);
      atomicMin(&counters->smallest, own);
      if (atomicCAS(&counters->winner, T(0), own) == T(0)) before[blockDim.x] = own;
    }
    if constexpr (!std::is_same_v<T, double>) atomicExch(&counters->last, own);
  }
  __syncthreads();
  if (threadIdx.x == 0) *copied = shared;
}

template <class T>
void check_atomics() {
  constexpr unsigned kThreads = 96;
  const Array<Counters<T>> global(std::vector<Counters<T>>{{T(0), T(0), T(1000), T(0), T(0)}}), shared(1);
  const Array<T> before(kThreads + 1);
  launch<atomics_kernel<T>>({.grid = {1}, .block = {kThreads}, .shared_bytes = sizeof(Counters<T>)}, stream(),
                            global.data(), shared.data(), before.data());
  for (const Counters<T>& got : {global.values()[0], shared.values()[0]}) {
    require(got.sum == T(kThreads), "atomicAdd gives ", got.sum);
    if constexpr (!std::is_floating_point_v<T>) {
      require(got.largest == T(kThreads) && got.smallest == T(1), "max ", got.largest, ", min ", got.smallest);
      require(got.winner >= T(1) && got.winner <= T(kThreads), "atomicCAS leaves ", got.winner);
    }
    if constexpr (!std::is_same_v<T, double>) require(got.last >= T(1), "atomicExch leaves ", got.last);
  }
  std::vector<T> old = before.values();
  old.pop_back();
  std::sort(old.begin(), old.end());
  for (std::size_t i = 0; i < old.size(); ++i) require_equal(old[i], i, "the sums before, sorted", i);
}

const Register kAtomics("device.atomics", [] {
  check_atomics<int>();
  check_atomics<unsigned>();
  check_atomics<unsigned long long>();
  check_atomics<float>();
  check_atomics<double>();
});

// ---- storage formats
template <class T>
__global__ void widen_kernel(const T* from, float* to) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  to[i] = widen(from[i]);
}
template <class T>
__global__ void narrow_kernel(const float* from, T* to, unsigned size) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < size) to[i] = narrow<T>(from[i]);
}

template <class T>
void check_formats() {
  std::vector<T> all(65536);
  for (unsigned i = 0; i < 65536; ++i) all[i].bits = static_cast<std::uint16_t>(i);
  const Array<T> from(all);
  const Array<float> to(all.size());
  launch<widen_kernel<T>>({.grid = {256}, .block = {256}}, stream(), from.data(), to.data());
  const std::vector<float> wide = to.values();
  std::vector<float> inputs;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const float expected = all[i];
    require(wide[i] == expected || (wide[i] != wide[i] && expected != expected), "widen of ", i, " is ", wide[i]);
    if (i % 7 == 0 || i % 1024 < 4) {  // values, ties and their neighbours
      const float next = all[(i + 1) % all.size()], middle = expected + (next - expected) / 2;
      for (const float x : {expected, middle, std::nextafter(middle, next), std::nextafter(middle, expected)}) {
        inputs.push_back(x);
      }
    }
  }
  for (const float x : {3e38f, 65519.9f, 65520.0f, 1e-40f, std::numeric_limits<float>::infinity()}) {
    inputs.push_back(x);
    inputs.push_back(-x);
  }
  const Array<float> values(inputs);
  const Array<T> narrowed(inputs.size());
  const auto size = static_cast<unsigned>(inputs.size());
  launch<narrow_kernel<T>>({.grid = {(size + 255) / 256}, .block = {256}}, stream(), values.data(), narrowed.data(),
                           size);
  const std::vector<T> got = narrowed.values();
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const T expected(inputs[i]);
    const float value = got[i];
    require(got[i].bits == expected.bits || (value != value && inputs[i] != inputs[i]), "narrow of ", inputs[i], " is ",
            value);
  }
}

const Register kFormats("device.formats", [] {
  check_formats<BFloat16>();
  check_formats<Float16>();
});

template <class T>
__global__ void rsqrt_kernel(const T* from, T* to) {
  to[threadIdx.x] = rsqrt(from[threadIdx.x]);
}

template <class T>
void check_rsqrt() {
  std::vector<T> values(64);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<T>(std::pow(1.7, static_cast<double>(i) - 32));
  const Array<T> from(values), to(64);
  launch<rsqrt_kernel<T>>({.grid = {1}, .block = {64}}, stream(), from.data(), to.data());
  const std::vector<T> got = to.values();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const T expected = T(1) / std::sqrt(values[i]);
    require(std::abs(got[i] - expected) <= 4 * std::numeric_limits<T>::epsilon() * expected, "rsqrt(", values[i],
            ") is ", got[i]);
  }
}

const Register kRsqrt("device.rsqrt", [] {
  check_rsqrt<float>();
  check_rsqrt<double>();
});

// ---- a block's and a warp's reductions (tile/reduce.cuh): twice through the same storage
template <int kThreads>
__global__ void reduce_kernel(const float* x, float* out) {
  auto& storage = shared_storage<ReduceStorage<float, kThreads>>();
  const float value = x[threadIdx.x];
  const float sum = block_reduce<kThreads>(value, Sum{}, storage);
  __syncthreads();
  const float largest = block_reduce<kThreads>(value, Maximum{}, storage);
  const float eighth = warp_reduce<8>(value, Minimum{});
  out[threadIdx.x] = sum;
  out[kThreads + threadIdx.x] = largest;
  out[2 * kThreads + threadIdx.x] = eighth;
}

template <int kThreads>
void check_reduce() {
  std::vector<float> x(kThreads);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 101) - 50;
  const Array<float> from(x), out(3 * x.size());
  launch<reduce_kernel<kThreads>>(
      {.grid = {1}, .block = {kThreads}, .shared_bytes = sizeof(ReduceStorage<float, kThreads>)}, stream(), from.data(),
      out.data());
  const std::vector<float> got = out.values();
  for (std::size_t i = 0; i < x.size(); ++i) {
    require_equal(got[i], std::accumulate(x.begin(), x.end(), 0.0f), "sum", i);
    require_equal(got[x.size() + i], *std::max_element(x.begin(), x.end()), "maximum", i);
    const auto first = x.begin() + static_cast<std::ptrdiff_t>(i / 8 * 8);
    require_equal(got[2 * x.size() + i], *std::min_element(first, first + 8), "minimum of eight", i);
  }
}

const Register kReduce("device.reduce", [] {
  check_reduce<32>();
  check_reduce<64>();
  check_reduce<256>();
  check_reduce<1024>();
});

// ---- the last block to finish adds up what all have written
__global__ void last_block_kernel(unsigned* partial, unsigned* counter, unsigned* out) {
  partial[blockIdx.x] = blockIdx.x + blockIdx.y * gridDim.x + 1;
  __threadfence();
  if (atomicAdd(counter, 1u) + 1 != gridDim.x * gridDim.y) return;
  __threadfence();
  unsigned sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += atomicAdd(partial + i, 0u);
  *out = sum;
}

const Register kLastBlock("device.last_block", [] {
  const Array<unsigned> partial(50), counter(1), out(1);
  launch<last_block_kernel>({.grid = {50}, .block = {1}}, stream(), partial.data(), counter.data(), out.data());
  require_equal(out.values()[0], 50 * 51 / 2, "sum", 0);
});

// ---- indices of three dimensions
struct Place {
  unsigned thread, block, threads, blocks;
};

__global__ void index_kernel(Place* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] = {thread, block, threads, gridDim.x * gridDim.y * gridDim.z};
}

const Register kIndices("device.indices", [] {
  const Array<Place> out(3 * 4 * 5 * 2 * 3 * 4);
  launch<index_kernel>({.grid = {2, 3, 4}, .block = {3, 4, 5}}, stream(), out.data());
  const std::vector<Place> got = out.values();
  for (std::size_t i = 0; i < got.size(); ++i) {
    require(got[i].thread == i % 60 && got[i].block == i / 60 && got[i].threads == 60 && got[i].blocks == 24, "thread ",
            i, " thinks it is ", got[i].thread, " of block ", got[i].block);
  }
});

}  // namespace
}  // namespace drupe::selftest
