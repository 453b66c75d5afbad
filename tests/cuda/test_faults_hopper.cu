// Faults planted in kernels that use mbarriers, bulk copies, clusters and wgmma, and the same kernels without them.
#include <platform/launch.cuh>
#include <platform/wgmma.cuh>

#include "cuda/faults.h"

namespace drupe::selftest {
namespace {

using namespace drupe::cuda;

// ---- mbarriers
struct Handover {
  Mbarrier full;
  int value[32];
};

enum class Barrier { right, not_visible, not_initialised, twice, one_more, ordinary_access, never, no_wait };

template <Barrier kFault>
__global__ void handover_kernel(int* out) {
  auto& shared = shared_storage<Handover>();
  const unsigned lane = threadIdx.x % 32;
  if (threadIdx.x == 0 && kFault != Barrier::not_initialised) {
    mbarrier_init(shared.full, kFault == Barrier::one_more ? 31 : 32);
    if constexpr (kFault == Barrier::one_more) mbarrier_expect_tx(shared.full, 16);
  }
  if constexpr (kFault != Barrier::not_visible) __syncthreads();
  if (threadIdx.x < 32) {
    shared.value[lane] = static_cast<int>(lane);
    if (kFault != Barrier::never || lane != 3) mbarrier_arrive(shared.full);
    if (kFault == Barrier::twice && lane == 3) mbarrier_arrive(shared.full);
    if (kFault == Barrier::ordinary_access && lane == 3) shared.full.state = 0;
  } else {
    if constexpr (kFault != Barrier::no_wait) mbarrier_wait(shared.full, 0);
    out[lane] = shared.value[31 - lane];
  }
}

const Register kHandover("fault.mbarriers", [] {
  const Array<int> out(32);
  const auto run = [&]<Barrier kFault>() {
    launch<handover_kernel<kFault>>({.grid = {1}, .block = {64}, .shared_bytes = sizeof(Handover)}, stream(),
                                    out.data());
  };
  expect_none([&] { run.operator()<Barrier::right>(); });
  expect_fault("mbarrier", [&] { run.operator()<Barrier::not_visible>(); });
  expect_fault("was not initialised", [&] { run.operator()<Barrier::not_initialised>(); });
  expect_fault_in_some_order("twice in one phase", [&] { run.operator()<Barrier::twice>(); });
  expect_fault("gets one more", [&] { run.operator()<Barrier::one_more>(); });
  expect_fault("of an mbarrier by an ordinary instruction", [&] { run.operator()<Barrier::ordinary_access>(); });
  expect_fault("deadlock: ", [&] { run.operator()<Barrier::never>(); });
  expect_fault(" races with ", [&] { run.operator()<Barrier::no_wait>(); });
});

// ---- loads
struct Stage {
  alignas(1024) float value[2][256];
  Mbarrier full[2], empty[2];
};

enum class Load {
  right,
  no_fence,
  no_wait,
  too_few_bytes,
  too_many_bytes,
  no_empty_wait,
  overwrites_stores,
  ends_early
};

template <Load kFault>
__global__ void load_kernel(const __grid_constant__ TensorMap map, float* out) {
  auto& shared = shared_storage<Stage>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(shared.full[i], 1);
      mbarrier_init(shared.empty[i], 64);
    }
    if constexpr (kFault != Load::no_fence) fence_mbarrier_init();
  }
  if constexpr (kFault == Load::overwrites_stores) shared.value[0][threadIdx.x] = 1;
  __syncthreads();
  float sum = 0;
  for (int step = 0; step < 4; ++step) {
    const int stage = step % 2;
    const auto round = static_cast<unsigned>(step / 2) & 1u;
    if (threadIdx.x == 64) {
      if constexpr (kFault != Load::no_empty_wait) mbarrier_wait(shared.empty[stage], round ^ 1u);
      const unsigned bytes = kFault == Load::too_few_bytes ? 1008 : kFault == Load::too_many_bytes ? 1040 : 1024;
      mbarrier_arrive_expect_tx(shared.full[stage], bytes);
      cp_async_bulk_tensor<2>(shared.value[stage], map, {0, 8 * step}, shared.full[stage]);
      if constexpr (kFault == Load::ends_early) break;
    } else if (threadIdx.x < 64) {
      if constexpr (kFault == Load::ends_early) break;
      if constexpr (kFault != Load::no_wait) mbarrier_wait(shared.full[stage], round);
      sum += shared.value[stage][threadIdx.x] + shared.value[stage][threadIdx.x ^ 128u];
      mbarrier_arrive(shared.empty[stage]);
    }
  }
  if (threadIdx.x < 64) out[threadIdx.x] = sum;
}

TensorMap map_of(const Array<float>& tensor, int swizzle = 128) {
  const std::int64_t sizes[] = {32, 32}, strides[] = {128};
  const int box[] = {32, 8};
  return make_tensor_map({.base = tensor.data(),
                          .dtype = Dtype::f32,
                          .sizes = sizes,
                          .strides = strides,
                          .box = box,
                          .swizzle_bytes = swizzle});
}

const Register kLoads("fault.tensor_loads", [] {
  const Array<float> tensor(32 * 32), out(64);
  const TensorMap map = map_of(tensor);
  const auto run = [&]<Load kFault>() {
    launch<load_kernel<kFault>>({.grid = {1}, .block = {96}, .shared_bytes = sizeof(Stage)}, stream(), map, out.data());
  };
  expect_none([&] { run.operator()<Load::right>(); });
  expect_fault("no fence.mbarrier_init", [&] { run.operator()<Load::no_fence>(); });
  expect_fault("load_kernel", [&] { run.operator()<Load::no_wait>(); });
  expect_fault("deadlock: ", [&] { run.operator()<Load::too_few_bytes>(); });
  expect_fault("deadlock: ", [&] { run.operator()<Load::too_many_bytes>(); });
  expect_fault("load_kernel", [&] { run.operator()<Load::no_empty_wait>(); });
  expect_fault("no fence.proxy.async", [&] { run.operator()<Load::overwrites_stores>(); });
});

// Whether the bytes have come when the block ends is chance.
const Register kEndsEarly("fault.load_in_flight_at_the_end", [] {
  const Array<float> tensor(32 * 32), out(64);
  const TensorMap map = map_of(tensor);
  expect_fault_in_some_order("a block ends while a bulk copy to its shared memory is in flight", [&] {
    launch<load_kernel<Load::ends_early>>({.grid = {1}, .block = {96}, .shared_bytes = sizeof(Stage)}, stream(), map,
                                          out.data());
  });
});

const Register kMaps("fault.tensor_maps", [] {
  const Array<float> tensor(32 * 32);
  const auto refuse = [&](const std::string& words, std::int64_t stride, int width, int offset) {
    const std::int64_t sizes[] = {32, 32}, strides[] = {stride};
    const int box[] = {width, 8};
    std::string message;
    try {
      make_tensor_map({.base = tensor.data() + offset,
                       .dtype = Dtype::f32,
                       .sizes = sizes,
                       .strides = strides,
                       .box = box,
                       .swizzle_bytes = 0});
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    require(message.find(words) != std::string::npos, "'", message, "' does not speak of '", words, "'");
  };
  refuse("strides that are multiples of 16", 100, 32, 0);
  refuse("box dimensions from 1 to 256", 128, 260, 0);
  refuse("an inner box that is a multiple of 16 bytes", 128, 30, 0);
  refuse("an address that is a multiple of 16", 128, 32, 1);
});

// ---- stores
enum class Store { right, no_fence, no_barrier, no_wait, overwrites };

template <Store kFault>
__global__ void store_kernel(const __grid_constant__ TensorMap map) {
  auto& shared = shared_storage<Stage>();
  for (int step = 0; step < 2; ++step) {
    for (unsigned i = threadIdx.x; i < 256; i += 64) shared.value[0][i] = static_cast<float>(i);
    if constexpr (kFault != Store::no_fence) fence_proxy_async();
    if constexpr (kFault != Store::no_barrier) __syncthreads();
    if (threadIdx.x == 0) {
      cp_async_bulk_tensor_store<2>(map, {0, 8 * step}, shared.value[0]);
      cp_async_bulk_commit_group();
      if (kFault != Store::no_wait && !(kFault == Store::overwrites && step == 0)) cp_async_bulk_wait_group_read<0>();
    }
    if (kFault == Store::no_wait) break;
    __syncthreads();
  }
}

const Register kStores("fault.tensor_stores", [] {
  const Array<float> tensor(32 * 32);
  const TensorMap map = map_of(tensor, 0);
  const auto run = [&]<Store kFault>() {
    launch<store_kernel<kFault>>({.grid = {1}, .block = {64}, .shared_bytes = sizeof(Stage)}, stream(), map);
  };
  expect_none([&] { run.operator()<Store::right>(); });
  expect_fault("no fence.proxy.async", [&] { run.operator()<Store::no_fence>(); });
  expect_fault("at shared byte ", [&] { run.operator()<Store::no_barrier>(); });
  expect_fault("an asynchronous read in flight", [&] { run.operator()<Store::overwrites>(); });
  expect_fault_in_some_order("a block ends while a bulk store reads its shared memory",
                             [&] { run.operator()<Store::no_wait>(); });
});

// ---- clusters
enum class Peers { right, no_barrier, exits_early, no_fence };

template <Peers kFault>
__global__ void peers_kernel(int* out) {
  auto& shared = shared_storage<Handover>();
  if (threadIdx.x == 0) {
    mbarrier_init(shared.full, 1);
    if constexpr (kFault != Peers::no_fence) fence_mbarrier_init();
    shared.value[0] = static_cast<int>(cluster_ctarank());
  }
  if constexpr (kFault != Peers::no_barrier) {
    cluster_arrive();
    cluster_wait();
  }
  const unsigned other = cluster_ctarank() ^ 1u;
  if (threadIdx.x == 0) {
    mbarrier_arrive_cluster(shared.full, other);
    __threadfence();  // a moment for the other
    __threadfence();
    out[cluster_ctarank()] = *mapa(&shared.value[0], other);
    mbarrier_wait(shared.full, 0);
  }
  if constexpr (kFault != Peers::exits_early) {
    cluster_arrive();
    cluster_wait();
  }
}

const Register kPeers("fault.clusters", [] {
  const Array<int> out(2);
  const auto run = [&]<Peers kFault>() {
    launch<peers_kernel<kFault>>({.grid = {2}, .block = {32}, .shared_bytes = sizeof(Handover), .cluster = {2}},
                                 stream(), out.data());
  };
  expect_none([&] { run.operator()<Peers::right>(); });
  expect_fault("an mbarrier ", [&] { run.operator()<Peers::no_barrier>(); });
  expect_fault("without fence.mbarrier_init", [&] { run.operator()<Peers::no_fence>(); });
  expect_fault_in_some_order("of a block that has ended", [&] { run.operator()<Peers::exits_early>(); });
});

// ---- wgmma
struct Matrices {
  alignas(1024) unsigned char a[64 * 128], b[64 * 128];
};

enum class Multiply {
  right,
  no_proxy_fence,
  no_fence,
  no_wait,
  written_in_flight,
  unaligned_pattern,
  base_offset,
  outside,
  disagree,
  overwritten,
};

template <Multiply kFault>
__global__ void multiply_kernel(float* out) {
  auto& shared = shared_storage<Matrices>();
  for (unsigned i = threadIdx.x; i < 64 * 64; i += 128) {
    reinterpret_cast<BFloat16*>(shared.a)[i] = BFloat16(1.0f);
    reinterpret_cast<BFloat16*>(shared.b)[i] = BFloat16(2.0f);
  }
  if constexpr (kFault != Multiply::no_proxy_fence) fence_proxy_async();
  __syncthreads();
  float sums[32];
  for (int i = 0; i < 32; ++i) sums[i] = 1;
  if constexpr (kFault != Multiply::no_fence) wgmma_fence();
  const unsigned shift = kFault == Multiply::unaligned_pattern ? 128 : 0;
  const unsigned stride = kFault == Multiply::outside ? 4096 : 1024;
  std::uint64_t a = wgmma_descriptor<128>(shared.a + shift, 0, 1024);
  const std::uint64_t b = wgmma_descriptor<128>(shared.b, 0, stride);
  if constexpr (kFault == Multiply::base_offset) a |= std::uint64_t{1} << 49;
  if (kFault == Multiply::disagree && threadIdx.x >= 64) a += 2;
  for (int step = 0; step < 2; ++step) {
    wgmma<BFloat16, 64>(sums, a, b, true);
    wgmma_commit_group();
    if (kFault == Multiply::written_in_flight) sums[3] += 1;
    if (kFault == Multiply::overwritten) shared.b[threadIdx.x] = 0;
    if (kFault != Multiply::no_wait) wgmma_wait_group<0>();
  }
  for (int i = 0; i < 32; ++i) out[32 * threadIdx.x + static_cast<unsigned>(i)] = sums[i];
}

template <Multiply kFault>
std::vector<float> multiply() {
  const Array<float> out(64 * 64);
  launch<multiply_kernel<kFault>>({.grid = {1}, .block = {128}, .shared_bytes = sizeof(Matrices)}, stream(),
                                  out.data());
  return out.values();
}

const Register kMultiply("fault.wgmma", [] {
  expect_none([] { require_equal(multiply<Multiply::right>()[7], 65, "product", 7); });
  expect_fault("no fence.proxy.async", [] { multiply<Multiply::no_proxy_fence>(); });
  expect_fault("without a wgmma.fence", [] { multiply<Multiply::no_fence>(); });
  expect_fault("accumulators were written", [] { multiply<Multiply::written_in_flight>(); });
  expect_fault("does not begin at a multiple of 1024 bytes", [] { multiply<Multiply::unaligned_pattern>(); });
  expect_fault("base offset", [] { multiply<Multiply::base_offset>(); });
  expect_fault("outside shared memory", [] { multiply<Multiply::outside>(); });
  expect_fault("threads disagree", [] { multiply<Multiply::disagree>(); });
  expect_fault(" races with ", [] { multiply<Multiply::overwritten>(); });
  for (const float value : multiply<Multiply::no_wait>()) {
    require(value != value, "accumulators that were not waited for show ", value);
  }
});

// ---- setmaxnreg: more registers than the block has never come
template <bool kFault>
__global__ void registers_kernel(int* out) {
  if (threadIdx.x < 128) {
    setmaxnreg_dec<40>();
  } else {
    setmaxnreg_inc<kFault ? 248 : 232>();
  }
  out[threadIdx.x] = 1;
}

const Register kRegistersFault("fault.registers", [] {
  const Array<int> out(384);
  const auto run = [&]<bool kFault>() {
    launch<registers_kernel<kFault>>({.grid = {1}, .block = {384}}, stream(), out.data());
  };
  expect_none([&] { run.operator()<false>(); });
  expect_fault("deadlock: ", [&] { run.operator()<true>(); });
});

}  // namespace
}  // namespace drupe::selftest
