// Each wrapper of platform/hopper.cuh against a plain C++ expectation.
#include <cmath>
#include <numeric>
#include <platform/hopper.cuh>
#include <platform/launch.cuh>

#include "cuda/selftest.h"

namespace drupe::selftest {
namespace {

using namespace drupe::cuda;

constexpr int kSm90 = 90;

// ---- mbarriers: a warp fills a ring of two stages that another empties
struct Ring {
  Mbarrier full[2], empty[2];
  int value[2][32];
};

__global__ void ring_kernel(int* out, int steps) {
  auto& ring = shared_storage<Ring>();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      mbarrier_init(ring.full[stage], 32);
      mbarrier_init(ring.empty[stage], 32);
    }
  }
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    const int stage = step % 2;
    const unsigned round = static_cast<unsigned>(step / 2) & 1u;
    if (threadIdx.x < 32) {
      mbarrier_wait(ring.empty[stage], round ^ 1u);
      ring.value[stage][lane] = 100 * step + lane;
      mbarrier_arrive(ring.full[stage]);
    } else {
      mbarrier_wait(ring.full[stage], round);
      out[32 * step + lane] = ring.value[stage][31 - lane];
      mbarrier_arrive(ring.empty[stage]);
    }
  }
}

const Register kRing(
    "hopper.mbarrier",
    [] {
      const Array<int> out(32 * 7);
      launch<ring_kernel>({.grid = {2}, .block = {64}, .shared_bytes = sizeof(Ring)}, stream(), out.data(), 7);
      const std::vector<int> got = out.values();
      for (std::size_t i = 0; i < got.size(); ++i) require_equal(got[i], i / 32 * 100 + 31 - i % 32, "handed over", i);
    },
    kSm90);

// ---- boxes by tensor map: the bytes of shared memory as the copy leaves them
struct alignas(1024) Box {
  unsigned char bytes[8192];
  Mbarrier barrier;
};

template <int kRank>
struct At {
  int at[kRank];
};

template <int kRank>
__global__ void load_kernel(const __grid_constant__ TensorMap map, At<kRank> at, unsigned bytes, unsigned char* out) {
  auto& box = shared_storage<Box>();
  if (threadIdx.x == 0) {
    mbarrier_init(box.barrier, 1);
    fence_mbarrier_init();
    prefetch_tensormap(map);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(box.barrier, bytes);
    cp_async_bulk_tensor(box.bytes, map, at.at, box.barrier);
  }
  mbarrier_wait(box.barrier, 0);
  for (unsigned i = threadIdx.x; i < bytes; i += blockDim.x) out[i] = box.bytes[i];
}

template <class T>
std::vector<T> numbered(std::size_t size) {
  std::vector<T> values(size);
  for (std::size_t i = 0; i < size; ++i) values[i] = static_cast<T>(static_cast<float>(i % 2039) + 1);
  return values;
}

// Element `index` of a box (innermost first), or 0 out of bounds.
template <class T, int kRank>
T box_element(const std::vector<T>& tensor, const std::int64_t (&sizes)[kRank], const int (&box)[kRank],
              const int (&at)[kRank], std::size_t index) {
  std::int64_t offset = 0, stride = 1;
  for (int d = 0; d < kRank; ++d) {
    const std::int64_t x = at[d] + static_cast<std::int64_t>(index % static_cast<std::size_t>(box[d]));
    index /= static_cast<std::size_t>(box[d]);
    if (x < 0 || x >= sizes[d]) return T(0.0f);
    offset += x * stride;
    stride *= sizes[d];
  }
  return tensor[static_cast<std::size_t>(offset)];
}

template <class T, int kRank>
void check_load(const std::int64_t (&sizes)[kRank], const int (&box)[kRank], const int (&at)[kRank], int swizzle) {
  std::int64_t strides[kRank] = {}, total = 1;
  std::size_t elements = 1;
  for (int d = 0; d < kRank; ++d) {
    total *= sizes[d];
    strides[d] = total * static_cast<std::int64_t>(sizeof(T));
    elements *= static_cast<std::size_t>(box[d]);
  }
  const std::vector<T> tensor = numbered<T>(static_cast<std::size_t>(total));
  const Array<T> from(tensor);
  const std::size_t bytes = elements * sizeof(T);
  const Array<unsigned char> out(bytes);
  const TensorMap map = make_tensor_map({.base = from.data(),
                                         .dtype = dtype_of<T>,
                                         .sizes = sizes,
                                         .strides = std::span(strides).first(kRank - 1),
                                         .box = box,
                                         .swizzle_bytes = swizzle});
  At<kRank> where;
  std::copy(at, at + kRank, where.at);
  launch<load_kernel<kRank>>({.grid = {1}, .block = {64}, .shared_bytes = sizeof(Box)}, stream(), map, where,
                             static_cast<unsigned>(bytes), out.data());
  const std::vector<unsigned char> got = out.values();
  const std::size_t lines = swizzle == 128 ? 8 : swizzle == 64 ? 4 : swizzle == 32 ? 2 : 1;
  for (std::size_t i = 0; i < elements; ++i) {
    const std::size_t byte = i * sizeof(T), chunk = byte / 16 % lines, line = byte / 128 % lines;
    const std::size_t placed = byte - chunk * 16 + (chunk ^ line) * 16;
    T value;
    std::copy_n(got.data() + placed, sizeof(T), reinterpret_cast<unsigned char*>(&value));
    const auto expected = static_cast<float>(box_element(tensor, sizes, box, at, i));
    require_equal(static_cast<float>(value), expected, "rank " + std::to_string(kRank) + ": box", i);
  }
}

const Register kLoads(
    "hopper.tensor_load",
    [] {
      check_load<float>({1000}, {64}, {40}, 0);
      check_load<float>({1000}, {64}, {-5}, 0);
      for (const int x : {0, -3, 60}) {
        check_load<BFloat16>({80, 50}, {64, 24}, {x, 35}, 128);
        check_load<Float16>({80, 50}, {32, 24}, {x, -2}, 64);
        check_load<BFloat16>({80, 50}, {16, 24}, {x, 0}, 32);
        check_load<float>({80, 50}, {32, 9}, {x, 45}, 128);
        check_load<float>({80, 50}, {20, 9}, {x, 45}, 0);
      }
      check_load<float>({12, 7, 5}, {8, 4, 3}, {8, 5, 3}, 32);
      check_load<std::int32_t>({8, 5, 4, 3}, {8, 3, 2, 2}, {0, -1, 3, 2}, 0);
      check_load<BFloat16>({64, 3, 4, 3, 2}, {64, 2, 2, 2, 1}, {0, 2, -1, 1, 1}, 128);
    },
    kSm90);

// ---- stores and sums: shared memory is written by ordinary stores, so it is fenced first
__global__ void store_kernel(const __grid_constant__ TensorMap map, int x, int y, bool adds) {
  auto& box = shared_storage<Box>();
  auto* value = reinterpret_cast<float*>(box.bytes);
  for (unsigned i = threadIdx.x; i < 32 * 8; i += blockDim.x) {
    value[i ^ ((i >> 5 & 7u) << 2)] = static_cast<float>(i + 1);
  }
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (adds) {
    cp_reduce_async_bulk_tensor_add(map, {x, y}, box.bytes);
  } else {
    cp_async_bulk_tensor_store(map, {x, y}, box.bytes);
  }
  cp_async_bulk_commit_group();
  cp_async_bulk_wait_group<0>();
}

const Register kStores(
    "hopper.tensor_store",
    [] {
      constexpr int kX = 40, kY = 5;
      for (const bool adds : {false, true}) {
        const std::vector<float> before = numbered<float>(64 * 10);
        const Array<float> tensor(before);
        const std::int64_t sizes[] = {64, 10}, strides[] = {64 * 4};
        const int box[] = {32, 8};
        const TensorMap map = make_tensor_map({.base = tensor.data(),
                                               .dtype = Dtype::f32,
                                               .sizes = sizes,
                                               .strides = strides,
                                               .box = box,
                                               .swizzle_bytes = 128});
        const unsigned blocks = adds ? 3 : 1;
        launch<store_kernel>({.grid = {blocks}, .block = {64}, .shared_bytes = sizeof(Box)}, stream(), map, kX, kY,
                             adds);
        const std::vector<float> got = tensor.values();
        for (std::size_t i = 0; i < got.size(); ++i) {
          const int x = static_cast<int>(i % 64) - kX, y = static_cast<int>(i / 64) - kY;
          const bool inside = x >= 0 && x < 32 && y >= 0 && y < 8;
          const float stored = static_cast<float>(32 * y + x + 1) * static_cast<float>(blocks);
          require_equal(got[i], inside ? stored + (adds ? before[i] : 0) : before[i], "tensor", i);
        }
      }
    },
    kSm90);

// ---- plain bulk copies, there and back in two groups
__global__ void bulk_kernel(const float* from, float* to) {
  auto& box = shared_storage<Box>();
  if (threadIdx.x == 0) {
    mbarrier_init(box.barrier, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(box.barrier, 2 * 512);
    cp_async_bulk(box.bytes, from, 512, box.barrier);
    cp_async_bulk(box.bytes + 512, from + 128, 512, box.barrier);
  }
  __syncthreads();
  mbarrier_wait(box.barrier, 0);
  auto* value = reinterpret_cast<float*>(box.bytes);
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) value[i] += 1;
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int half = 0; half < 2; ++half) {
      cp_async_bulk_store(to + 128 * half, box.bytes + 512 * half, 512);
      cp_async_bulk_commit_group();
    }
    cp_async_bulk_wait_group_read<1>();
    box.bytes[0] = 77;
    cp_async_bulk_wait_group_read<0>();
  }
}

const Register kBulk(
    "hopper.bulk",
    [] {
      const Array<float> from(numbered<float>(256)), to(256);
      launch<bulk_kernel>({.grid = {1}, .block = {64}, .shared_bytes = sizeof(Box)}, stream(), from.data(), to.data());
      const std::vector<float> got = to.values();
      for (std::size_t i = 0; i < 256; ++i) require_equal(got[i], i + 2, "copied", i);
    },
    kSm90);

// ---- im2col: rows of a convolution's matrix, (C, W, H, N)
__global__ void im2col_kernel(const __grid_constant__ TensorMap map, int w, int h, int n, int r, int s, unsigned bytes,
                              float* out) {
  auto& box = shared_storage<Box>();
  if (threadIdx.x == 0) {
    mbarrier_init(box.barrier, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(box.barrier, bytes);
    const std::uint16_t offsets[2] = {static_cast<std::uint16_t>(s), static_cast<std::uint16_t>(r)};
    cp_async_bulk_tensor_im2col<4>(box.bytes, map, {0, w, h, n}, offsets, box.barrier);
  }
  __syncthreads();
  mbarrier_wait(box.barrier, 0);
  for (unsigned i = threadIdx.x; i < bytes / 4; i += blockDim.x) out[i] = reinterpret_cast<float*>(box.bytes)[i];
}

void check_im2col(int stride, int padding) {
  constexpr int kC = 8, kW = 7, kH = 5, kN = 3, kFilter = 3, kPixels = 24;
  const std::vector<float> tensor = numbered<float>(kC * kW * kH * kN);
  const Array<float> from(tensor), out(kC * kPixels);
  const std::int64_t sizes[] = {kC, kW, kH, kN}, strides[] = {kC * 4, kC * kW * 4, kC * kW * kH * 4};
  const int element_strides[] = {1, stride, stride, 1};
  const int lower[] = {-padding, -padding}, upper[] = {padding - (kFilter - 1), padding - (kFilter - 1)};
  const TensorMap map = make_im2col_map({.tensor = {.base = from.data(),
                                                    .dtype = Dtype::f32,
                                                    .sizes = sizes,
                                                    .strides = strides,
                                                    .box = {},
                                                    .element_strides = element_strides},
                                         .lower = lower,
                                         .upper = upper,
                                         .channels = kC,
                                         .pixels = kPixels});
  const int p_size = (kH + 2 * padding - kFilter) / stride + 1, q_size = (kW + 2 * padding - kFilter) / stride + 1;
  const int first = q_size + 1;  // the matrix's row that the box begins with
  for (const int tap : {0, 4, 5, 8}) {
    const int r = tap / kFilter, s = tap % kFilter;
    launch<im2col_kernel>({.grid = {1}, .block = {32}, .shared_bytes = sizeof(Box)}, stream(), map,
                          first % q_size * stride - padding, first / q_size % p_size * stride - padding,
                          first / (q_size * p_size), r, s, static_cast<unsigned>(kC * kPixels * 4), out.data());
    const std::vector<float> got = out.values();
    for (int i = 0; i < kPixels; ++i) {
      const int row = first + i, w = row % q_size * stride - padding + s,
                h = row / q_size % p_size * stride - padding + r, n = row / (q_size * p_size);
      const bool inside = w >= 0 && w < kW && h >= 0 && h < kH && n < kN;
      for (int c = 0; c < kC; ++c) {
        const float expected = inside ? tensor[static_cast<std::size_t>(((n * kH + h) * kW + w) * kC + c)] : 0;
        require_equal(got[static_cast<std::size_t>(i * kC + c)], expected,
                      "stride " + std::to_string(stride) + ", row " + std::to_string(row) + ": channel",
                      static_cast<std::size_t>(c));
      }
    }
  }
}

const Register kIm2col(
    "hopper.im2col",
    [] {
      check_im2col(1, 0);
      check_im2col(1, 1);
      check_im2col(2, 1);
    },
    kSm90);

// ---- clusters: each of two blocks loads half of a row for both, which free it towards the loader
struct Shared {
  alignas(128) float half[2][32];
  Mbarrier full, empty[2];
  int token;
};

__global__ void cluster_kernel(const __grid_constant__ TensorMap map, float* out, int* tokens) {
  auto& shared = shared_storage<Shared>();
  const unsigned rank = cluster_ctarank(), blocks = cluster_nctarank();
  if (threadIdx.x == 0) {
    mbarrier_init(shared.full, 1);
    mbarrier_init(shared.empty[0], 2);
    mbarrier_init(shared.empty[1], 2);
    fence_mbarrier_init();
    shared.token = static_cast<int>(10 * (blockIdx.x + 1));
  }
  cluster_arrive();
  cluster_wait();
  for (int step = 0; step < 3; ++step) {
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect_tx(shared.full, 256);
      mbarrier_wait(shared.empty[rank], static_cast<unsigned>(step + 1) & 1u);
      cp_async_bulk_tensor_multicast<2>(shared.half[rank], map, {static_cast<int>(32 * rank), step}, shared.full, 3);
    }
    mbarrier_wait(shared.full, static_cast<unsigned>(step) & 1u);
    out[(blockIdx.x * 3 + static_cast<unsigned>(step)) * 64 + threadIdx.x] =
        shared.half[threadIdx.x / 32][threadIdx.x % 32];
    __syncthreads();
    if (threadIdx.x < 2) mbarrier_arrive_cluster(shared.empty[threadIdx.x], threadIdx.x);
  }
  if (threadIdx.x == 0) tokens[blockIdx.x] = *mapa(&shared.token, rank ^ 1u) + static_cast<int>(blocks);
  cluster_arrive();
  cluster_wait();
}

const Register kCluster(
    "hopper.cluster",
    [] {
      const std::vector<float> rows = numbered<float>(64 * 3);
      const Array<float> from(rows), out(4 * 3 * 64);
      const Array<int> tokens(4);
      const std::int64_t sizes[] = {64, 3}, strides[] = {256};
      const int box[] = {32, 1};
      const TensorMap map =
          make_tensor_map({.base = from.data(), .dtype = Dtype::f32, .sizes = sizes, .strides = strides, .box = box});
      launch<cluster_kernel>({.grid = {4}, .block = {64}, .shared_bytes = sizeof(Shared), .cluster = {2}}, stream(),
                             map, out.data(), tokens.data());
      const std::vector<float> got = out.values();
      for (std::size_t i = 0; i < got.size(); ++i) require_equal(got[i], rows[i % 192], "row", i);
      const std::vector<int> token = tokens.values();
      for (std::size_t i = 0; i < 4; ++i) require_equal(token[i], 10 * ((i ^ 1u) + 1) + 2, "token", i);
    },
    kSm90);

// ---- stmatrix, elect.sync, setmaxnreg
struct alignas(16) Tiles {
  std::uint16_t element[4][8][8];
};

template <bool kTransposed>
__global__ void stmatrix_kernel(std::uint16_t* out, unsigned* elected) {
  auto& tiles = shared_storage<Tiles>();
  const unsigned lane = threadIdx.x;
  std::uint32_t registers[4], two[2];
  for (unsigned m = 0; m < 4; ++m) registers[m] = (64 * m + 2 * lane) | (64 * m + 2 * lane + 1) << 16;
  stmatrix_x4<kTransposed>(tiles.element[lane / 8][lane % 8], registers);
  __syncwarp();
  two[0] = registers[1] + 0x01000100u;
  two[1] = registers[2] + 0x01000100u;
  stmatrix_x2<kTransposed>(tiles.element[lane / 8 % 2 + 1][lane % 8], two);
  __syncwarp();
  for (unsigned i = lane; i < 256; i += 32) out[i] = tiles.element[i / 64][i / 8 % 8][i % 8];
  if (elect_one()) atomicAdd(elected, 1u);
  if (lane < 7 && elect_one(0x7fu)) atomicAdd(elected, 0x100u);
}

template <bool kTransposed>
void check_stmatrix() {
  const Array<std::uint16_t> out(256);
  const Array<unsigned> elected(1);
  launch<stmatrix_kernel<kTransposed>>({.grid = {1}, .block = {32}, .shared_bytes = sizeof(Tiles)}, stream(),
                                       out.data(), elected.data());
  const std::vector<std::uint16_t> got = out.values();
  for (unsigned i = 0; i < 256; ++i) {
    const unsigned m = i / 64, row = i / 8 % 8, column = i % 8;
    const unsigned expected = 64 * m + (kTransposed ? 8 * column + row : 8 * row + column);
    require_equal(unsigned{got[i]}, expected + (m == 1 || m == 2 ? 256 : 0), "element", i);
  }
  require_equal(elected.values()[0], 0x101u, "elected", 0);
}

__global__ __launch_bounds__(384, 1) void registers_kernel(unsigned* out) {
  if (threadIdx.x < 128) {
    setmaxnreg_dec<24>();
    atomicAdd(out, 1u);
  } else {
    setmaxnreg_inc<240>();
    atomicAdd(out, 1u);
  }
}

const Register kStmatrix(
    "hopper.stmatrix",
    [] {
      check_stmatrix<false>();
      check_stmatrix<true>();
    },
    kSm90);

const Register kSetmaxnreg(
    "hopper.setmaxnreg",
    [] {
      const Array<unsigned> out(1);
      launch<registers_kernel>({.grid = {2}, .block = {384}}, stream(), out.data());
      require_equal(out.values()[0], 2 * 384, "threads", 0);
    },
    kSm90);

}  // namespace
}  // namespace drupe::selftest
