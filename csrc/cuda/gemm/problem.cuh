// gemm as its kernels see it: the operands, and what becomes of its sums.
#pragma once

#include "cuda/gemm/grid.cuh"
#include "cuda/gemm/runs.cuh"

namespace drupe::cuda {

// What a kernel of kernel.cuh needs of a problem:
//   Sum, kRun               what is summed, and how many columns the epilogue takes at a time
//   grid, a, b              where blocks work, and on what
//   Sum* partial            where sums in parts wait for each other, a block's tile after the other
//   finish(at, row, col, run)  takes a row's finished sums from column `col` on
template <class T>
struct GemmProblem {
  using Sum = Accumulator<T>;
  static constexpr int kRun = kPackSize<T>;

  GemmGrid grid;
  GemmOperand<T> a, b;
  Sum* partial;
  T* y;
  T* pre_activation;
  const T* bias;
  const T* residual;
  std::int64_t residual_row, residual_col;
  Sum alpha;
  Activation activation;
  bool y_vectors, bias_vectors, residual_vectors;

  __device__ __forceinline__ void finish(const GemmPlace& at, std::int64_t row, std::int64_t col,
                                         Sum (&run)[kRun]) const {
    const int count = grid.N - col < kRun ? static_cast<int>(grid.N - col) : kRun;
#pragma unroll
    for (int e = 0; e < kRun; ++e) run[e] *= alpha;
    const auto add = [&](const T* from, std::int64_t stride, bool vectors) {
      Sum more[kRun];
      load_run(more, from, stride, count, vectors);
#pragma unroll
      for (int e = 0; e < kRun; ++e) run[e] += more[e];
    };
    if (bias) add(bias + col, 1, bias_vectors);
    if (residual) {
      add(residual + at.offset.at[kBatchResidual] + row * residual_row + col * residual_col, residual_col,
          residual_vectors);
    }
    const std::int64_t index = (at.batch * grid.M + row) * grid.N + col;
    if (pre_activation) store_run(pre_activation + index, run, count, y_vectors);
    activate_run(activation, run);
    store_run(y + index, run, count, y_vectors);
  }
};

}  // namespace drupe::cuda
