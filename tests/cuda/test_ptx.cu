// Each wrapper of platform/ptx.cuh that every GPU has, against a plain C++ expectation.
#include <cmath>
#include <limits>
#include <platform/launch.cuh>
#include <platform/ptx.cuh>

#include "cuda/selftest.h"

namespace drupe::selftest {
namespace {

using namespace drupe::cuda;

// ---- cp.async: three groups, waited for one after the other; each thread copies kBytes a group
template <int kBytes>
struct alignas(16) CopyStorage {
  unsigned char stage[3][64 * kBytes];
};

template <int kBytes>
__global__ void copy_kernel(const unsigned char* from, unsigned char* to) {
  auto& storage = shared_storage<CopyStorage<kBytes>>();
  const int at = static_cast<int>(threadIdx.x) * kBytes, size = 64 * kBytes;
  for (int stage = 0; stage < 3; ++stage) {
    cp_async<kBytes>(&storage.stage[stage][at], from + stage * size + at, (threadIdx.x + stage) % 3 != 0);
    cp_async_commit_group();
  }
  const int other = size - kBytes - at;
  const auto collect = [&](int stage) {
    __syncthreads();
    for (int i = 0; i < kBytes; ++i) to[stage * size + other + i] = storage.stage[stage][other + i];
  };
  cp_async_wait_group<2>();
  collect(0);
  cp_async_wait_group<1>();
  collect(1);
  cp_async_wait_group<0>();
  collect(2);
}

template <int kBytes>
void check_copies() {
  std::vector<unsigned char> bytes(3 * 64 * kBytes);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i * 7 % 251 + 1);
  const Array<unsigned char> from(bytes), to(bytes.size());
  launch<copy_kernel<kBytes>>({.grid = {1}, .block = {64}, .shared_bytes = sizeof(CopyStorage<kBytes>)}, stream(),
                              from.data(), to.data());
  const std::vector<unsigned char> got = to.values();
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const std::size_t stage = i / (64 * kBytes), thread = i % (64 * kBytes) / kBytes;
    require_equal(int{got[i]}, (thread + stage) % 3 != 0 ? bytes[i] : 0, "byte", i);
  }
}

const Register kCopies("ptx.cp_async", [] {
  check_copies<4>();
  check_copies<8>();
  check_copies<16>();
});

// ---- named barriers: half of the block fills, the other half reads, twice
struct HandOver {
  int value[32];
};

__global__ void named_barrier_kernel(int* out) {
  auto& storage = shared_storage<HandOver>();
  const unsigned lane = threadIdx.x % 32;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x < 32) {
      if (round > 0) bar_sync(2, 64);
      storage.value[lane] = static_cast<int>(10 * lane) + round;
      bar_arrive(1, 64);
    } else {
      bar_sync(1, 64);
      out[32 * round + static_cast<int>(lane)] = storage.value[31 - lane];
      if (round == 0) bar_arrive(2, 64);
    }
  }
}

const Register kNamedBarriers("ptx.named_barriers", [] {
  const Array<int> out(64);
  launch<named_barrier_kernel>({.grid = {1}, .block = {64}, .shared_bytes = sizeof(HandOver)}, stream(), out.data());
  const std::vector<int> got = out.values();
  for (std::size_t i = 0; i < 64; ++i) require_equal(got[i], 10 * (31 - i % 32) + i / 32, "handed over", i);
});

// ---- ldmatrix: element (m, i, j) of the matrices is 64 m + 8 i + j
struct alignas(16) Matrices {
  std::uint16_t element[4][8][8];
};

template <bool kTransposed>
__global__ void ldmatrix_kernel(std::uint32_t* out) {
  auto& storage = shared_storage<Matrices>();
  for (unsigned i = threadIdx.x; i < 256; i += 32)
    storage.element[i / 64][i / 8 % 8][i % 8] = static_cast<std::uint16_t>(i);
  __syncthreads();
  const unsigned lane = threadIdx.x;
  std::uint32_t four[4], two[2];
  ldmatrix_x4<kTransposed>(four, storage.element[lane / 8][lane % 8]);
  ldmatrix_x2<kTransposed>(two, storage.element[lane / 8 % 2 + 1][lane % 8]);
  for (int m = 0; m < 4; ++m) out[6 * lane + m] = four[m];
  for (int m = 0; m < 2; ++m) out[6 * lane + 4 + m] = two[m];
}

template <bool kTransposed>
void check_ldmatrix() {
  const Array<std::uint32_t> out(6 * 32);
  launch<ldmatrix_kernel<kTransposed>>({.grid = {1}, .block = {32}, .shared_bytes = sizeof(Matrices)}, stream(),
                                       out.data());
  const std::vector<std::uint32_t> got = out.values();
  for (unsigned i = 0; i < 6 * 32; ++i) {
    const unsigned lane = i / 6, row = lane / 4, column = lane % 4 * 2, m = i % 6 < 4 ? i % 6 : i % 6 - 4 + 1;
    const unsigned low = 64 * m + (kTransposed ? 8 * column + row : 8 * row + column);
    require_equal(got[i], low | (low + (kTransposed ? 8 : 1)) << 16, "register", i);
  }
}

const Register kLdmatrix("ptx.ldmatrix", [] {
  check_ldmatrix<false>();
  check_ldmatrix<true>();
});

// ---- mma: fragments are filled element by element as ptx.cuh lays them out; E is what a register packs
template <class E, class D, class F>
__global__ void mma_kernel(const E* a, const E* b, D* d, F multiply) {
  constexpr int kPacked = 4 / sizeof(E), kDepth = 8 * kPacked;
  const int g = static_cast<int>(threadIdx.x) >> 2, t = static_cast<int>(threadIdx.x) & 3;
  std::uint32_t left[4] = {}, right[2] = {};
  for (int j = 0; j < kPacked; ++j) {
    const int shift = 8 * static_cast<int>(sizeof(E)) * j;
    for (int r = 0; r < 4; ++r) {
      const int row = g + 8 * (r & 1), k = kPacked * t + j + kDepth / 2 * (r >> 1);
      left[r] |= static_cast<std::uint32_t>(a[row * kDepth + k]) << shift;
    }
    for (int r = 0; r < 2; ++r) {
      right[r] |= static_cast<std::uint32_t>(b[(kPacked * t + j + kDepth / 2 * r) * 8 + g]) << shift;
    }
  }
  D sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = static_cast<D>(i);
  multiply(sums, left, right);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = sums[i];
}

template <class T>
struct Mma16 {
  using Element = std::uint16_t;
  using Sum = float;
  static Element encode(int value) { return T(static_cast<float>(value)).bits; }
  __device__ void operator()(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) const {
    mma_m16n8k16(d, a, b, T{});
  }
};
struct MmaTf32 {
  using Element = std::uint32_t;
  using Sum = float;
  // The low bits must not matter.
  static Element encode(int value) { return std::bit_cast<std::uint32_t>(static_cast<float>(value)) | 0x1234u % 8192; }
  __device__ void operator()(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) const {
    mma_m16n8k8_tf32(d, a, b);
  }
};
struct MmaS8 {
  using Element = std::uint8_t;
  using Sum = std::int32_t;
  static Element encode(int value) { return static_cast<Element>(value); }
  __device__ void operator()(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) const {
    mma_m16n8k32_s8(d, a, b);
  }
};

template <class F>
void check_mma() {
  using E = typename F::Element;
  using D = typename F::Sum;
  constexpr int kDepth = 32 / sizeof(E);
  std::vector<int> a(16 * kDepth), b(8 * kDepth);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<int>(i * 29 % 17) - 8;
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<int>(i * 31 % 19) - 9;
  std::vector<E> left(a.size()), right(b.size());
  for (std::size_t i = 0; i < a.size(); ++i) left[i] = F::encode(a[i]);
  for (std::size_t i = 0; i < b.size(); ++i) right[i] = F::encode(b[i]);
  const Array<E> from_left(left), from_right(right);
  const Array<D> out(16 * 8);
  launch<mma_kernel<E, D, F>>({.grid = {1}, .block = {32}}, stream(), from_left.data(), from_right.data(), out.data(),
                              F{});
  const std::vector<D> got = out.values();
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      int sum = 2 * (row >> 3) + (column & 1);
      for (int k = 0; k < kDepth; ++k) sum += a[row * kDepth + k] * b[k * 8 + column];
      require_equal(got[row * 8 + column], sum, "product", static_cast<std::size_t>(row * 8 + column));
    }
  }
}

const Register kMma("ptx.mma", [] {
  check_mma<Mma16<BFloat16>>();
  check_mma<Mma16<Float16>>();
  check_mma<MmaTf32>();
  check_mma<MmaS8>();
});

__global__ void mma_f64_kernel(const double* a, const double* b, double* d) {
  const int g = static_cast<int>(threadIdx.x) >> 2, t = static_cast<int>(threadIdx.x) & 3;
  double sums[2] = {1, 2};
  mma_m8n8k4_f64(sums, a[4 * g + t], b[8 * t + g]);
  d[8 * g + 2 * t] = sums[0];
  d[8 * g + 2 * t + 1] = sums[1];
}

const Register kMmaF64("ptx.mma_f64", [] {
  std::vector<double> a(32), b(32);
  for (std::size_t i = 0; i < 32; ++i) {
    a[i] = static_cast<double>(i) - 11.5;
    b[i] = static_cast<double>(i * 7 % 32) / 4;
  }
  const Array<double> left(a), right(b), out(64);
  launch<mma_f64_kernel>({.grid = {1}, .block = {32}}, stream(), left.data(), right.data(), out.data());
  const std::vector<double> got = out.values();
  for (std::size_t i = 0; i < 64; ++i) {
    double sum = 1 + static_cast<double>(i % 2);
    for (std::size_t k = 0; k < 4; ++k) sum += a[i / 8 * 4 + k] * b[k * 8 + i % 8];
    require_equal(got[i], sum, "product", i);
  }
});

// ---- cvt.rna.tf32
__global__ void round_tf32_kernel(const float* x, std::uint32_t* y) {
  y[threadIdx.x] = cvt_rna_tf32(x[threadIdx.x]);
}

const Register kRoundTf32("ptx.cvt_rna_tf32", [] {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float largest = std::numeric_limits<float>::max(), step = 0x1p-10f;
  // Ties (half a step) go away from zero, whether the neighbour is even or odd; 0x1.003p0 is one and a half steps.
  const std::vector<float> x{
      1,       1 + step / 2, -1 - step / 2, 0x1.006p0f, 1 + 0.49f * step, 1 + 0.51f * step, infinity, -infinity,
      largest, 0.0f,         -0.0f,         nan};
  const std::vector<float> rounded{1,        1 + step,  -1 - step, 1 + 2 * step, 1,     1 + step,
                                   infinity, -infinity, infinity,  0.0f,         -0.0f, nan};
  const Array<float> from(x);
  const Array<std::uint32_t> to(x.size());
  launch<round_tf32_kernel>({.grid = {1}, .block = {static_cast<unsigned>(x.size())}}, stream(), from.data(),
                            to.data());
  const std::vector<std::uint32_t> got = to.values();
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto kept = std::bit_cast<float>(got[i] & ~0x1fffu);
    require(std::isnan(rounded[i]) ? std::isnan(kept) : kept == rounded[i], x[i], " becomes ", kept);
    require(std::signbit(kept) == std::signbit(rounded[i]) || std::isnan(kept), x[i], " loses its sign");
  }
});

// ---- ex2
__global__ void ex2_kernel(const float* x, float* y) {
  y[threadIdx.x] = ex2_approx(x[threadIdx.x]);
}

const Register kEx2("ptx.ex2", [] {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> x{infinity, -infinity, nan, 0.0f, -0.0f, 1e-40f, 127.5f, 128.0f, -126.0f, -126.5f, -140.0f};
  while (x.size() < 256) x.push_back((static_cast<float>(x.size()) - 128) * 0.97f);
  const Array<float> from(x), to(x.size());
  launch<ex2_kernel>({.grid = {1}, .block = {256}}, stream(), from.data(), to.data());
  const std::vector<float> got = to.values();
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp2(static_cast<double>(x[i]));
    if (x[i] != x[i]) {
      require(got[i] != got[i], "2^NaN is ", got[i]);
    } else if (exact > std::numeric_limits<float>::max()) {
      require(got[i] == infinity, "2^", x[i], " is ", got[i]);
    } else if (exact < 0x1p-126) {
      require(got[i] == 0, "2^", x[i], " is ", got[i]);
    } else {
      require(std::abs(got[i] - exact) <= 0x1p-21 * exact, "2^", x[i], " is ", got[i], ", not ", exact);
    }
  }
});

}  // namespace
}  // namespace drupe::selftest
