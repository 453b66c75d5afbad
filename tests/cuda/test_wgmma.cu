// wgmma (platform/wgmma.cuh) against a plain C++ expectation: every shape, type, swizzle and order of A and B.
#include <platform/launch.cuh>
#include <platform/wgmma.cuh>

#include "cuda/selftest.h"

namespace drupe::selftest {
namespace {

using namespace drupe::cuda;

constexpr int kSm90 = 90, kM = 64, kDepth = 64;

template <int kN>
struct alignas(1024) Operands {
  unsigned char a[kM * kDepth * 2];
  unsigned char b[kN * kDepth * 2];
};

// How a matrix of `extent` (along m or n) by kDepth lies in shared memory: in bands as wide as the swizzle's lines, of
// k when K-major, else of m or n.
template <int kSwizzle, bool kTransposed>
struct Layout {
  static constexpr int kLine = kSwizzle == 0 ? 16 : kSwizzle;

  __device__ static int place(int extent, int mn, int k) {
    const int along = kTransposed ? mn : k, across = kTransposed ? k : mn, height = kTransposed ? kDepth : extent;
    const int byte = along / (kLine / 2) * height * kLine + across * kLine + along % (kLine / 2) * 2;
    const int lines = kSwizzle == 0 ? 1 : kSwizzle / 16;
    return byte ^ ((byte >> 7) % lines << 4);
  }
  // Of the 16 k from k on.
  __device__ static std::uint64_t descriptor(const unsigned char* matrix, int extent, int k) {
    const unsigned band = static_cast<unsigned>((kTransposed ? kDepth : extent) * kLine);
    if constexpr (kTransposed) {
      const unsigned char* from = matrix + k * kLine;
      return kSwizzle == 0 ? wgmma_descriptor<kSwizzle>(from, 8 * kLine, band)
                           : wgmma_descriptor<kSwizzle>(from, band, 8 * kLine);
    } else {
      const int column = k % (kLine / 2);
      return wgmma_descriptor<kSwizzle>(matrix + k / (kLine / 2) * static_cast<int>(band) + column * 2,
                                        kSwizzle == 0 ? band : 0, 8 * kLine);
    }
  }
};

// d = 1 + A B, A and B row-major in global memory, kDepth long. One warpgroup.
template <class T, int kN, int kSwizzle, bool kTransposedA, bool kTransposedB, bool kRegisters>
__global__ __launch_bounds__(128) void wgmma_kernel(const T* a, const T* b, float* d) {
  using LayoutA = Layout<kSwizzle, kTransposedA>;
  using LayoutB = Layout<kSwizzle, kTransposedB>;
  auto& shared = shared_storage<Operands<kN>>();
  for (int i = static_cast<int>(threadIdx.x); i < kM * kDepth; i += 128) {
    *reinterpret_cast<T*>(shared.a + LayoutA::place(kM, i / kDepth, i % kDepth)) = a[i];
  }
  for (int i = static_cast<int>(threadIdx.x); i < kN * kDepth; i += 128) {
    *reinterpret_cast<T*>(shared.b + LayoutB::place(kN, i / kDepth, i % kDepth)) = b[i];
  }
  fence_proxy_async();
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32, g = static_cast<int>(threadIdx.x) % 32 >> 2,
            t = static_cast<int>(threadIdx.x) & 3;
  float sums[kN / 2];
  for (int i = 0; i < kN / 2; ++i) sums[i] = 1;
  std::uint32_t fragments[kDepth / 16][4];
  if constexpr (kRegisters) {
    for (int k = 0; k < kDepth / 16; ++k) {
      for (int r = 0; r < 4; ++r) {
        const T* from = a + (16 * warp + g + 8 * (r & 1)) * kDepth + 16 * k + 2 * t + 8 * (r >> 1);
        fragments[k][r] = from[0].bits | static_cast<std::uint32_t>(from[1].bits) << 16;
      }
    }
  }
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    const std::uint64_t right = LayoutB::descriptor(shared.b, kN, k);
    if constexpr (kRegisters) {
      wgmma<T, kN, kTransposedB>(sums, fragments[k / 16], right, true);
    } else {
      wgmma<T, kN, kTransposedA, kTransposedB>(sums, LayoutA::descriptor(shared.a, kM, k), right, true);
    }
    if (k == 16) wgmma_commit_group();
  }
  wgmma_commit_group();
  wgmma_wait_group<1>();
  wgmma_wait_group<0>();
  for (int i = 0; i < kN / 2; ++i) {
    d[(16 * warp + g + 8 * (i >> 1 & 1)) * kN + 8 * (i >> 2) + 2 * t + (i & 1)] = sums[i];
  }
}

template <class T>
std::vector<T> operand(int rows, int factor) {
  std::vector<T> values(static_cast<std::size_t>(rows * kDepth));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = T(static_cast<float>(static_cast<int>(i * static_cast<std::size_t>(factor) % 13) - 6));
  }
  return values;
}

template <class T>
void require_product(const std::vector<T>& a, const std::vector<T>& b, const std::vector<float>& d, int n, int depth,
                     float start, const std::string& what) {
  for (std::size_t i = 0; i < d.size(); ++i) {
    const std::size_t row = i / static_cast<std::size_t>(n), column = i % static_cast<std::size_t>(n);
    float sum = start;
    for (std::size_t k = 0; k < static_cast<std::size_t>(depth); ++k) {
      sum += static_cast<float>(a[row * static_cast<std::size_t>(depth) + k]) *
             static_cast<float>(b[column * static_cast<std::size_t>(depth) + k]);
    }
    require_equal(d[i], sum, what + ": product", i);
  }
}

template <class T, int kN, int kSwizzle, bool kTransposedA, bool kTransposedB, bool kRegisters = false>
void check_wgmma() {
  const std::vector<T> a = operand<T>(kM, 29), b = operand<T>(kN, 31);
  const Array<T> left(a), right(b);
  const Array<float> d(kM * kN);
  launch<wgmma_kernel<T, kN, kSwizzle, kTransposedA, kTransposedB, kRegisters>>(
      {.grid = {1}, .block = {128}, .shared_bytes = sizeof(Operands<kN>)}, stream(), left.data(), right.data(),
      d.data());
  require_product(a, b, d.values(), kN, kDepth, 1,
                  "n " + std::to_string(kN) + ", swizzle " + std::to_string(kSwizzle) + ", transposed " +
                      std::to_string(kTransposedA) + std::to_string(kTransposedB));
}

const Register kShapes(
    "wgmma.shapes",
    [] {
      check_wgmma<BFloat16, 64, 128, false, false>();
      check_wgmma<Float16, 96, 32, false, false>();
      check_wgmma<Float16, 128, 128, false, true>();
      check_wgmma<BFloat16, 192, 64, false, false>();
      check_wgmma<BFloat16, 256, 128, false, false>();
    },
    kSm90);

const Register kLayouts(
    "wgmma.layouts",
    [] {
      check_wgmma<BFloat16, 64, 0, false, false>();
      check_wgmma<BFloat16, 64, 32, true, false>();
      check_wgmma<BFloat16, 64, 64, false, true>();
      check_wgmma<BFloat16, 64, 128, true, true>();
      check_wgmma<BFloat16, 64, 0, true, true>();
    },
    kSm90);

const Register kRegisterOperand(
    "wgmma.a_in_registers",
    [] {
      check_wgmma<BFloat16, 64, 128, false, false, true>();
      check_wgmma<Float16, 128, 128, false, true, true>();
    },
    kSm90);

// ---- the whole way: a producer warpgroup loads boxes by tensor map into a ring, a consumer multiplies them
constexpr int kStages = 2;

struct alignas(1024) Pipeline {
  unsigned char a[kStages][kM * 128], b[kStages][64 * 128];
  Mbarrier full[kStages], empty[kStages];
};

__global__ __launch_bounds__(256, 1) void pipeline_kernel(const __grid_constant__ TensorMap a,
                                                          const __grid_constant__ TensorMap b, int steps, float* d) {
  auto& shared = shared_storage<Pipeline>();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(shared.full[stage], 1);
      mbarrier_init(shared.empty[stage], 1);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= 128) {
    setmaxnreg_dec<40>();
    if (threadIdx.x != 128) return;
    for (int step = 0; step < steps; ++step) {
      const int stage = step % kStages;
      mbarrier_wait(shared.empty[stage], static_cast<unsigned>(step / kStages + 1) & 1u);
      mbarrier_arrive_expect_tx(shared.full[stage], 2 * 64 * 128);
      cp_async_bulk_tensor<2>(shared.a[stage], a, {64 * step, 0}, shared.full[stage]);
      cp_async_bulk_tensor<2>(shared.b[stage], b, {64 * step, 0}, shared.full[stage]);
    }
    return;
  }
  float sums[32];
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    mbarrier_wait(shared.full[stage], static_cast<unsigned>(step / kStages) & 1u);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      wgmma<BFloat16, 64>(sums, wgmma_descriptor<128>(shared.a[stage] + 32 * k, 0, 1024),
                          wgmma_descriptor<128>(shared.b[stage] + 32 * k, 0, 1024), step > 0 || k > 0);
    }
    wgmma_commit_group();
    wgmma_wait_group<0>();
    if (threadIdx.x == 0) mbarrier_arrive(shared.empty[stage]);
  }
  const int warp = static_cast<int>(threadIdx.x) / 32, g = static_cast<int>(threadIdx.x) % 32 >> 2,
            t = static_cast<int>(threadIdx.x) & 3;
  for (int i = 0; i < 32; ++i) {
    d[(16 * warp + g + 8 * (i >> 1 & 1)) * 64 + 8 * (i >> 2) + 2 * t + (i & 1)] = sums[i];
  }
}

const Register kPipeline(
    "wgmma.pipeline",
    [] {
      constexpr int kSteps = 5, kLong = 64 * kSteps;
      std::vector<BFloat16> a, b;
      for (int i = 0; i < kSteps; ++i) {
        const std::vector<BFloat16> more_a = operand<BFloat16>(64, 29), more_b = operand<BFloat16>(64, 31);
        a.insert(a.end(), more_a.begin(), more_a.end());
        b.insert(b.end(), more_b.begin(), more_b.end());
      }
      const Array<BFloat16> left(a), right(b);
      const Array<float> d(64 * 64);
      const std::int64_t sizes[] = {kLong, 64}, strides[] = {kLong * 2};
      const int box[] = {64, 64};
      const auto map = [&](const Array<BFloat16>& matrix) {
        return make_tensor_map({.base = matrix.data(),
                                .dtype = Dtype::bf16,
                                .sizes = sizes,
                                .strides = strides,
                                .box = box,
                                .swizzle_bytes = 128});
      };
      launch<pipeline_kernel>({.grid = {1}, .block = {256}, .shared_bytes = sizeof(Pipeline)}, stream(), map(left),
                              map(right), kSteps, d.data());
      require_product(a, b, d.values(), 64, kLong, 0, "pipeline");
    },
    kSm90);

}  // namespace
}  // namespace drupe::selftest
