// Kernels with a fault planted, which the emulated GPU must find, and the same kernels without it, in which it must
// find nothing. kFault is where the two differ.
#include <platform/launch.cuh>
#include <platform/ptx.cuh>

#include "cuda/faults.h"

namespace drupe::selftest {
namespace {

using namespace drupe::cuda;

constexpr int kThreads = 128;

struct Tile {
  float value[kThreads];
};

LaunchConfig config(std::size_t shared_bytes, unsigned threads = kThreads, unsigned blocks = 2) {
  return {.grid = {blocks}, .block = {threads}, .shared_bytes = shared_bytes};
}

template <auto kRight, auto kWrong, class... A>
void check_pair(const std::string& words, const LaunchConfig& how, const A&... arguments) {
  expect_none([&] { launch<kRight>(how, stream(), arguments...); });
  expect_fault(words, [&] { launch<kWrong>(how, stream(), arguments...); });
}

// ---- races
template <bool kFault>
__global__ void barrier_kernel(float* out) {
  auto& tile = shared_storage<Tile>();
  tile.value[threadIdx.x] = 1;
  if constexpr (!kFault) __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = tile.value[(threadIdx.x + 40) % kThreads];
}

const Register kBarrier("fault.missing_syncthreads", [] {
  const Array<float> out(2 * kThreads);
  check_pair<barrier_kernel<false>, barrier_kernel<true>>(" races with ", config(sizeof(Tile)), out.data());
});

template <bool kFault>
__global__ void shuffled_kernel(float* out) {
  auto& tile = shared_storage<Tile>();
  const float sum = __shfl_xor_sync(kFullMask, static_cast<float>(threadIdx.x), 1);
  if (threadIdx.x % 32 == 0) tile.value[threadIdx.x / 32] = sum;
  const float other = __shfl_xor_sync(kFullMask, sum, 2);
  if constexpr (!kFault) __syncthreads();
  if (threadIdx.x < 32) {
    const float value = tile.value[threadIdx.x % 4] + other;
    out[threadIdx.x] = __shfl_xor_sync(kFullMask, value, 1);
  }
}

const Register kShuffled("fault.shuffles_are_no_barrier", [] {
  const Array<float> out(kThreads);
  check_pair<shuffled_kernel<false>, shuffled_kernel<true>>(" races with ", config(sizeof(Tile), kThreads, 1),
                                                            out.data());
});

template <bool kFault>
__global__ void warp_kernel(float* out) {
  auto& tile = shared_storage<Tile>();
  tile.value[threadIdx.x] = 2;
  if constexpr (!kFault) __syncwarp();
  out[threadIdx.x] = tile.value[threadIdx.x ^ 1u];
}

const Register kWarps("fault.missing_syncwarp", [] {
  const Array<float> out(kThreads);
  check_pair<warp_kernel<false>, warp_kernel<true>>(" races with ", config(sizeof(Tile)), out.data());
});

template <bool kFault>
__global__ void reuse_kernel(float* out) {
  auto& tile = shared_storage<Tile>();
  float sum = 0;
  for (int stage = 0; stage < 3; ++stage) {
    tile.value[threadIdx.x] = static_cast<float>(stage);
    __syncthreads();
    sum += tile.value[(threadIdx.x + 64) % kThreads];
    if constexpr (!kFault) __syncthreads();
  }
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

const Register kReuse("fault.stage_overwritten_while_read", [] {
  const Array<float> out(2 * kThreads);
  check_pair<reuse_kernel<false>, reuse_kernel<true>>(" races with ", config(sizeof(Tile)), out.data());
});

template <bool kFault>
__global__ void global_kernel(unsigned* counter, unsigned* out) {
  auto& tile = shared_storage<Tile>();
  auto* count = reinterpret_cast<unsigned*>(tile.value);
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  if constexpr (kFault) {
    *count += 1;
  } else {
    atomicAdd(count, 1u);
  }
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = *count + atomicAdd(counter, *count);
}

const Register kIncrement("fault.increment_that_is_not_atomic", [] {
  const Array<unsigned> counter(1), out(2);
  check_pair<global_kernel<false>, global_kernel<true>>(" races with ", config(sizeof(Tile)), counter.data(),
                                                        out.data());
});

// ---- asynchronous copies
struct alignas(16) Stages {
  float value[2][4 * kThreads];
};

enum class Copy { right, no_wait, waits_for_too_few, no_barrier, overwrites };

template <Copy kFault>
__global__ void copy_kernel(const float* from, float* out) {
  auto& stages = shared_storage<Stages>();
  const unsigned at = 4 * threadIdx.x;
  const auto fetch = [&](int step) {
    cp_async<16>(&stages.value[step % 2][at], from + at);
    cp_async_commit_group();
  };
  fetch(0);
  float sum = 0;
  for (int step = 0; step < 4; ++step) {
    if (kFault == Copy::overwrites && step < 3) fetch(step + 1);
    if constexpr (kFault == Copy::waits_for_too_few) cp_async_wait_group<1>();
    if (kFault == Copy::right || kFault == Copy::no_barrier) cp_async_wait_group<0>();
    if (kFault == Copy::overwrites) {
      if (step < 3) {
        cp_async_wait_group<1>();
      } else {
        cp_async_wait_group<0>();
      }
    }
    if constexpr (kFault != Copy::no_barrier) __syncthreads();
    if (kFault != Copy::overwrites && step < 3) fetch(step + 1);
    sum += stages.value[step % 2][(at + 64) % (4 * kThreads)];
  }
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

const Register kCopies("fault.copies", [] {
  const Array<float> from(4 * kThreads), out(2 * kThreads);
  const LaunchConfig how = config(sizeof(Stages));
  check_pair<copy_kernel<Copy::right>, copy_kernel<Copy::no_wait>>("a copy in flight", how, from.data(), out.data());
  check_pair<copy_kernel<Copy::right>, copy_kernel<Copy::waits_for_too_few>>("a copy in flight", how, from.data(),
                                                                             out.data());
  check_pair<copy_kernel<Copy::right>, copy_kernel<Copy::no_barrier>>(" races with ", how, from.data(), out.data());
  check_pair<copy_kernel<Copy::right>, copy_kernel<Copy::overwrites>>(" races with ", how, from.data(), out.data());
});

// The data itself is wrong until it was waited for, checker or not.
__global__ void misaligned_copy_kernel(const float* from, int offset) {
  auto& stages = shared_storage<Stages>();
  cp_async<16>(&stages.value[0][4 * threadIdx.x], from + 4 * threadIdx.x + offset);
  cp_async_wait_group<0>();
}

const Register kMisaligned("fault.misaligned_copy", [] {
  const Array<float> from(8 * kThreads);
  expect_none([&] { launch<misaligned_copy_kernel>(config(sizeof(Stages)), stream(), from.data(), 4); });
  expect_fault("misaligned", [&] { launch<misaligned_copy_kernel>(config(sizeof(Stages)), stream(), from.data(), 1); });
});

// ---- addresses
__global__ void shared_access_kernel(float* out, int load, int store) {
  auto* value = reinterpret_cast<float*>(&shared_storage<Tile>());
  value[threadIdx.x] = 3;
  __syncthreads();
  if (load != 0) out[threadIdx.x] = value[load];
  if (store != 0) value[store] = 4;
}

const Register kSharedBounds("fault.shared_memory_out_of_bounds", [] {
  const Array<float> out(kThreads);
  const auto run = [&](int load, int store) {
    launch<shared_access_kernel>(config(sizeof(Tile), kThreads, 1), stream(), out.data(), load, store);
  };
  expect_none([&] { run(kThreads - 1, 0); });
  expect_fault("a load of 4 bytes of memory outside the shared memory", [&] { run(kThreads, 0); });
  expect_fault("a store of 4 bytes of memory outside the shared memory", [&] { run(0, kThreads); });
  expect_fault("a store of 4 bytes of memory outside the shared memory", [&] { run(0, -1); });
});

__global__ void global_access_kernel(float* x, std::int64_t load, std::int64_t store) {
  x[store] = x[load];
}

const Register kGlobalBounds("fault.device_memory_out_of_bounds", [] {
  const Array<float> before(101), x(101), after(101);
  const auto run = [&](float* at, std::int64_t load, std::int64_t store) {
    launch<global_access_kernel>(config(0, 1, 1), stream(), at, load, store);
  };
  expect_none([&] { run(x.data(), 100, 0); });
  for (const std::int64_t wrong : {std::int64_t{101}, std::int64_t{-1}, std::int64_t{1} << 33}) {
    expect_fault("a load of 4 bytes of device memory outside any live block", [&] { run(x.data(), wrong, 0); });
    expect_fault("a store of 4 bytes of device memory outside any live block", [&] { run(x.data(), 0, wrong); });
  }
  float host[4] = {};
  expect_fault("a load of 4 bytes of memory that is not the device's", [&] { run(host, 1, 0); });
  expect_fault("memory that is not the device's", [&] { run(nullptr, 0, 0); });
});

const Register kFreed("fault.device_memory_used_after_free", [] {
  float* x = nullptr;
  {
    const Array<float> array(1000);
    x = array.data();
    launch<global_access_kernel>(config(0, 1, 1), stream(), x, 0, 1);
  }
  expect_fault("outside any live block", [&] { launch<global_access_kernel>(config(0, 1, 1), stream(), x, 0, 1); });
});

struct Pointers {
  const float* local;
};

__global__ void local_kernel(float* out, bool shares) {
  auto& pointers = shared_storage<Pointers>();
  volatile float own[2] = {1, 2};
  if (threadIdx.x == 0) pointers.local = const_cast<const float*>(own);
  __syncthreads();
  if (shares || threadIdx.x == 0) out[threadIdx.x] = pointers.local[0];
  __syncthreads();
}

const Register kLocal("fault.local_memory_of_another_thread", [] {
  const Array<float> out(kThreads);
  const auto run = [&](bool shares) {
    launch<local_kernel>(config(sizeof(Pointers), kThreads, 1), stream(), out.data(), shares);
  };
  expect_none([&] { run(false); });
  expect_fault("another thread's local memory", [&] { run(true); });
});

struct Rows {
  float value[4][kThreads];
};

__global__ void index_kernel(float* out, int row, int shift) {
  auto& rows = shared_storage<Rows>();
  for (int r = 0; r < 4; ++r) rows.value[r][threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = rows.value[row][static_cast<int>(threadIdx.x) + shift];
}

const Register kIndex("fault.index_past_an_array", [] {
  const Array<float> out(kThreads);
  const auto run = [&](int row, int shift) {
    launch<index_kernel>(config(sizeof(Rows), kThreads, 1), stream(), out.data(), row, shift);
  };
  expect_none([&] { run(3, 0); });
  expect_fault("is past the end of", [&] { run(0, 1); });
  expect_fault("is past the end of", [&] { run(6, 0); });
});

struct alignas(16) Four {
  float element[4];
};

__global__ void vector_kernel(const float* from, float* to) {
  *reinterpret_cast<Four*>(to) = *reinterpret_cast<const Four*>(from);
}

const Register kVector("fault.misaligned_vector", [] {
  const Array<float> x(16), y(16);
  expect_none([&] { launch<vector_kernel>(config(0, 1, 1), stream(), x.data() + 4, y.data()); });
  expect_fault("off the 16-byte alignment",
               [&] { launch<vector_kernel>(config(0, 1, 1), stream(), x.data() + 2, y.data()); });
});

// ---- what a warp or a block does together
template <bool kFault>
__global__ void divergent_kernel(float* out) {
  float value = static_cast<float>(threadIdx.x);
  if (!kFault || threadIdx.x % 32 < 16) {
    value += __shfl_xor_sync(kFullMask, value, 1);
  } else {
    value -= __shfl_xor_sync(kFullMask, value, 1);
  }
  out[threadIdx.x] = value;
}
template <bool kFault>
__global__ void divergent_barrier_kernel(float* out) {
  out[threadIdx.x] = 1;
  if (!kFault || threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
template <bool kFault>
__global__ void mask_kernel(float* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(kFault ? 0xffff0000u : 0x0000ffffu, 1.0f, 0);
}

const Register kDivergent("fault.divergent_collectives", [] {
  const Array<float> out(kThreads);
  const LaunchConfig how = config(0, kThreads, 1);
  check_pair<divergent_kernel<false>, divergent_kernel<true>>("while other lanes of the warp are at", how, out.data());
  check_pair<divergent_barrier_kernel<false>, divergent_barrier_kernel<true>>("while other threads are at", how,
                                                                              out.data());
  check_pair<mask_kernel<false>, mask_kernel<true>>("leaves out the calling lane", how, out.data());
});

template <bool kFault>
__global__ void deadlock_kernel(float* out) {
  const unsigned warp = threadIdx.x / 32;
  if (warp < (kFault ? 2 : 3)) bar_sync(1, 96);
  __syncthreads();
  out[threadIdx.x] = 1;
}
template <bool kFault>
__global__ void disagreement_kernel(float* out) {
  bar_sync(1, kFault && threadIdx.x < 32 ? 64 : kThreads);
  out[threadIdx.x] = 1;
}

const Register kDeadlock("fault.deadlock", [] {
  const Array<float> out(kThreads);
  const LaunchConfig how = config(0, kThreads, 1);
  check_pair<deadlock_kernel<false>, deadlock_kernel<true>>("deadlock: ", how, out.data());
  check_pair<disagreement_kernel<false>, disagreement_kernel<true>>("barrier 1 is for ", how, out.data());
});

template <bool kFault>
__global__ void half_warp_kernel(float* out) {
  std::uint32_t a[4] = {}, b[2] = {};
  float d[4] = {};
  if (kFault && threadIdx.x % 32 == 5) return;
  mma_m16n8k16(d, a, b, BFloat16{});
  out[threadIdx.x] = d[0];
}
template <int kOffset>
__global__ void ldmatrix_kernel(float* out) {
  auto& tile = shared_storage<Stages>();
  for (unsigned i = threadIdx.x; i < 4 * kThreads; i += kThreads) tile.value[0][i] = 1;
  __syncthreads();
  std::uint32_t registers[4];
  ldmatrix_x4(registers, &tile.value[0][4 * (threadIdx.x % 32) + kOffset]);
  out[threadIdx.x] = static_cast<float>(registers[0]);
}

const Register kMatrices("fault.tensor_instructions", [] {
  const Array<float> out(kThreads);
  const LaunchConfig how = config(sizeof(Stages), kThreads, 1);
  check_pair<half_warp_kernel<false>, half_warp_kernel<true>>("lacks lanes", how, out.data());
  check_pair<ldmatrix_kernel<0>, ldmatrix_kernel<2>>("misaligned", how, out.data());
});

// ---- launches
const Register kLaunches("fault.launches", [] {
  const Array<float> out(2 * kThreads);
  const auto run = [&](const LaunchConfig& how) { launch<barrier_kernel<false>>(how, stream(), out.data()); };
  run(config(sizeof(Tile)));
  expect_fault("the launch asked for 508", [&] { run(config(sizeof(Tile) - 4)); });
  expect_fault("a block of 1056 threads", [&] { run(config(sizeof(Tile), 1056)); });
  expect_fault("a block of 0 threads", [&] { run(config(sizeof(Tile), 0)); });
  expect_fault("bytes of shared memory: 232448 fit", [&] { run(config(232449)); });
  expect_fault("a grid of ", [&] { run(config(sizeof(Tile), kThreads, 0)); });
  expect_fault("at most 2147483647, 65535 and 65535",
               [&] { run({.grid = {1, 65536}, .block = {kThreads}, .shared_bytes = sizeof(Tile)}); });
  expect_fault("whole clusters",
               [&] { run({.grid = {3}, .block = {kThreads}, .shared_bytes = sizeof(Tile), .cluster = {2}}); });
});

}  // namespace
}  // namespace drupe::selftest
