// gemm as its kernels see it: where a block of threads works, and what becomes of its sums.
#pragma once

#include <cstdint>
#include <platform/device.cuh>

#include "cuda/gemm_tile.h"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/strided.cuh"
#include "cuda/tile/vec.cuh"

namespace drupe::cuda {

// A matrix (outer, k): outer is M for a, N for b.
template <class T>
struct GemmOperand {
  const T* data;
  std::int64_t outer_stride, k_stride;
  bool k_major;  // in shared memory, and which way neighbouring threads read
  bool vectors;  // 16 bytes at a time along the contiguous dimension

  __device__ __forceinline__ const T* at(std::int64_t batch, std::int64_t outer, std::int64_t k) const {
    return data + batch + outer * outer_stride + k * k_stride;
  }
};

// Operands of the batch, in the order of its strides.
enum BatchOperand { kBatchA, kBatchB, kBatchResidual, kBatchOperands };

template <class T>
struct GemmProblem {
  std::int64_t M, N, K;
  GemmOperand<T> a, b;
  T* y;
  T* pre_activation;
  const T* bias;
  const T* residual;
  std::int64_t residual_row, residual_col;
  Accumulator<T> alpha;
  Activation activation;
  bool y_vectors, bias_vectors, residual_vectors;
  Strided<kBatchOperands> batch;
  std::int64_t splits, part;  // of K
  Accumulator<T>* partial;    // (splits, batch, M, N) where there are several
  std::int64_t tiles_m, tiles_n;
  std::int64_t first;  // of the blocks of this launch
};

struct GemmPlace {
  std::int64_t m0, n0, k_begin, k_end;
  std::int64_t split, batch;
  Offsets<kBatchOperands> offset;
};

// Eight rows of blocks go column by column: what runs at one time shares its operands in the L2 cache.
template <class T>
__device__ __forceinline__ GemmPlace gemm_place(const GemmProblem<T>& problem, std::int64_t index, int block) {
  constexpr std::int64_t kGroup = 8;
  const std::int64_t tiles = problem.tiles_m * problem.tiles_n;
  const std::int64_t rest = index / tiles, tile = index - rest * tiles;
  const std::int64_t group = tile / (kGroup * problem.tiles_n), within = tile - group * kGroup * problem.tiles_n;
  const std::int64_t first = group * kGroup;
  const std::int64_t rows = problem.tiles_m - first < kGroup ? problem.tiles_m - first : kGroup;
  const std::int64_t column = within / rows;
  GemmPlace at;
  at.m0 = (first + within - column * rows) * block;
  at.n0 = column * block;
  at.batch = rest / problem.splits;
  at.split = rest - at.batch * problem.splits;
  at.k_begin = at.split * problem.part;
  at.k_end = at.k_begin + problem.part < problem.K ? at.k_begin + problem.part : problem.K;
  at.offset = locate(problem.batch, at.batch);
  return at;
}

// Elements that an epilogue takes at a time: 16 bytes of y.
template <class T>
inline constexpr int kGemmRun = kPackSize<T>;

template <class T>
__device__ __forceinline__ void load_run(Accumulator<T> (&run)[kGemmRun<T>], const T* from, std::int64_t stride,
                                         int count, bool vectors) {
  if (vectors) {
    const auto pack = load_pack<kGemmRun<T>>(from);
#pragma unroll
    for (int e = 0; e < kGemmRun<T>; ++e) run[e] = widen(pack.element[e]);
  } else {
#pragma unroll
    for (int e = 0; e < kGemmRun<T>; ++e) run[e] = e < count ? widen(from[e * stride]) : Accumulator<T>(0);
  }
}

template <class T>
__device__ __forceinline__ void store_run(T* to, const Accumulator<T> (&run)[kGemmRun<T>], int count, bool vectors) {
  if (vectors) {
    Pack<T, kGemmRun<T>> pack;
#pragma unroll
    for (int e = 0; e < kGemmRun<T>; ++e) pack.element[e] = narrow<T>(run[e]);
    store_pack(to, pack);
  } else {
#pragma unroll
    for (int e = 0; e < kGemmRun<T>; ++e) {
      if (e < count) to[e] = narrow<T>(run[e]);
    }
  }
}

// The same for sums, which are wider.
template <class A, int kRun>
__device__ __forceinline__ void load_sums(A (&run)[kRun], const A* from, int count, bool vectors) {
  constexpr int kPack = kPackSize<A>;
#pragma unroll
  for (int e = 0; e < kRun; e += kPack) {
    if (vectors) {
      const auto pack = load_pack<kPack>(from + e);
#pragma unroll
      for (int p = 0; p < kPack; ++p) run[e + p] = pack.element[p];
    } else {
#pragma unroll
      for (int p = 0; p < kPack; ++p) run[e + p] = e + p < count ? from[e + p] : A(0);
    }
  }
}
template <class A, int kRun>
__device__ __forceinline__ void store_sums(A* to, const A (&run)[kRun], int count, bool vectors) {
  constexpr int kPack = kPackSize<A>;
#pragma unroll
  for (int e = 0; e < kRun; e += kPack) {
    if (vectors) {
      Pack<A, kPack> pack;
#pragma unroll
      for (int p = 0; p < kPack; ++p) pack.element[p] = run[e + p];
      store_pack(to + e, pack);
    } else {
#pragma unroll
      for (int p = 0; p < kPack; ++p) {
        if (e + p < count) to[e + p] = run[e + p];
      }
    }
  }
}

template <Activation kA, class A, int kCount>
__device__ __forceinline__ void activate_run(A (&run)[kCount]) {
#pragma unroll
  for (int e = 0; e < kCount; ++e) run[e] = activate<kA>(run[e]);
}
template <class A, int kCount>
__device__ __forceinline__ void activate_run(Activation activation, A (&run)[kCount]) {
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
      return activate_run<Activation::relu>(run);
    case Activation::gelu:
      return activate_run<Activation::gelu>(run);
    case Activation::gelu_tanh:
      return activate_run<Activation::gelu_tanh>(run);
    case Activation::silu:
      return activate_run<Activation::silu>(run);
    case Activation::sigmoid:
      return activate_run<Activation::sigmoid>(run);
    case Activation::tanh:
      return activate_run<Activation::tanh>(run);
  }
}

// Elements of a run from column `col` that exist.
template <class T>
__device__ __forceinline__ int run_count(const GemmProblem<T>& problem, std::int64_t col) {
  return problem.N - col < kGemmRun<T> ? static_cast<int>(problem.N - col) : kGemmRun<T>;
}

// Finished sums of row `row`, columns from `col` on, become elements of y.
template <class T>
__device__ __forceinline__ void finish_run(const GemmProblem<T>& problem, std::int64_t batch, std::int64_t residual,
                                           std::int64_t row, std::int64_t col, Accumulator<T> (&run)[kGemmRun<T>]) {
  using A = Accumulator<T>;
  constexpr int kRun = kGemmRun<T>;
  const int count = run_count(problem, col);
#pragma unroll
  for (int e = 0; e < kRun; ++e) run[e] *= problem.alpha;
  const auto add = [&](const T* from, std::int64_t stride, bool vectors) {
    A more[kRun];
    load_run<T>(more, from, stride, count, vectors);
#pragma unroll
    for (int e = 0; e < kRun; ++e) run[e] += more[e];
  };
  if (problem.bias) add(problem.bias + col, 1, problem.bias_vectors);
  if (problem.residual) {
    add(problem.residual + residual + row * problem.residual_row + col * problem.residual_col, problem.residual_col,
        problem.residual_vectors);
  }
  const std::int64_t at = (batch * problem.M + row) * problem.N + col;
  if (problem.pre_activation) store_run<T>(problem.pre_activation + at, run, count, problem.y_vectors);
  activate_run(problem.activation, run);
  store_run<T>(problem.y + at, run, count, problem.y_vectors);
}

// Where the sums of part `split` of K wait for the others.
template <class T>
__device__ __forceinline__ Accumulator<T>* partial_at(const GemmProblem<T>& problem, std::int64_t split,
                                                      std::int64_t batch, std::int64_t row, std::int64_t col) {
  const std::int64_t matrix = split * problem.batch.size + batch;
  return problem.partial + (matrix * problem.M + row) * problem.N + col;
}

// Half of a warp's sums on their way to y: a warp writes them as its fragments lie and reads them row by row.
template <class A, int kRows, int kCols>
struct GemmSlab {
  static constexpr int kPad = 8;  // rows of one column of fragments lie in different banks
  alignas(16) A value[kRows][kCols + kPad];
};

template <class T, int kRows, int kCols>
__device__ __forceinline__ void flush_slab(const GemmProblem<T>& problem, const GemmPlace& at,
                                           GemmSlab<Accumulator<T>, kRows, kCols>& slab, int row0, int col0) {
  using A = Accumulator<T>;
  constexpr int kRun = kGemmRun<T>, kRunsPerRow = kCols / kRun;
  __syncwarp();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) % 32; i < kRows * kRunsPerRow; i += 32) {
    const int r = i / kRunsPerRow, c = i % kRunsPerRow * kRun;
    const std::int64_t row = at.m0 + row0 + r, col = at.n0 + col0 + c;
    if (row >= problem.M || col >= problem.N) continue;
    A run[kRun];
    load_sums(run, &slab.value[r][c], kRun, true);
    if (problem.splits > 1) {
      store_sums(partial_at(problem, at.split, at.batch, row, col), run, run_count(problem, col), problem.y_vectors);
    } else {
      finish_run(problem, at.batch, at.offset.at[kBatchResidual], row, col, run);
    }
  }
  __syncwarp();
}

}  // namespace drupe::cuda
