// Products of tiles in shared memory, by FMA, for any dtype and any width. kThreads threads own a tile of kRows x 64: a
// warp 16 (float64: 8) rows, a half-warp every other one of them, a thread kM rows by 4 columns.
#pragma once

#include "cuda/attention/problem.cuh"
#include "cuda/tile/reduce.cuh"
#include "cuda/tile/vec.cuh"

namespace drupe::cuda::fma_tile {

inline constexpr int kThreads = 128;
inline constexpr int kSide = 64;   // columns of a tile
inline constexpr int kDepth = 32;  // of a stage

// Rows of a thread and of a tile: as many as keep the sums in registers.
template <class A>
inline constexpr int kM = sizeof(A) == 8 ? 4 : 8;
template <class A>
inline constexpr int kRows = 8 * kM<A>;

// Columns of the output that a block sums at once, in units of kSide.
template <class T>
inline constexpr int kMostChunks = sizeof(T) == 8 ? 1 : 2;

// Rows are 16 bytes longer than they need be, which spreads them over the banks.
template <class A>
struct Storage {
  static constexpr int kPad = 16 / sizeof(A);
  struct Factors {
    A left[kRows<A>][kDepth + kPad], right[kSide][kDepth + kPad];
  };
  union {
    alignas(16) Factors factors;    // of a product over the width
    A values[kSide][kSide + kPad];  // the right factor of a product over rows
  };
  alignas(16) A weights[kRows<A>][kSide + kPad];  // the left one
};

// The local rows and columns of a thread: of the tile as a product over the width gives it, columns kept 16 apart; of
// the sums over rows, 4 columns side by side.
struct Lane {
  int row, column;

  template <class A>
  static __device__ __forceinline__ Lane here() {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    return {thread / 32 * 2 * kM<A> + lane / 16, lane % 16};
  }
};

// An index below a tile's extent, from one that may lie anywhere.
__device__ __forceinline__ int local(std::int64_t index) {
  return static_cast<int>(index < 0 ? 0 : index > kSide ? kSide : index);
}

// to[r][c] = from's row row0 + r, column column0 + c, or zero outside `exist` and the width.
template <int kCount, int kColumns, class T, class A, int kStride>
__device__ __forceinline__ void load_tile(A (&to)[kCount][kStride], const Rows<const T>& from, std::int64_t row0,
                                          Span exist, std::int64_t column0) {
  constexpr int kPack = 16 / static_cast<int>(sizeof(T));
  constexpr int kPerRow = kColumns / kPack, kStep = kThreads / kPerRow;
  static_assert(kThreads % kPerRow == 0 && kThreads % kColumns == 0);
  // A thread keeps its column, and one pointer walks down.
  const int thread = static_cast<int>(threadIdx.x), first = local(exist.begin - row0);
  const int last = local(exist.end - row0);
  const std::int64_t columns = from.width - column0;
  if (from.aligned) {
    const int c = thread % kPerRow * kPack;
    const T* at = from.data + (row0 + thread / kPerRow) * from.stride + column0 + c;
#pragma unroll 2
    for (int r = thread / kPerRow; r < kCount; r += kStep) {
      Pack<T, kPack> pack{};
      if (r >= first && r < last && c < columns) pack = load_pack<kPack>(at);
#pragma unroll
      for (int k = 0; k < kPack; ++k) to[r][c + k] = widen(pack.element[k]);
      at += kStep * from.stride;
    }
  } else {
    const int c = thread % kColumns;
    const T* at = from.data + (row0 + thread / kColumns) * from.stride + column0 + c;
#pragma unroll 2
    for (int r = thread / kColumns; r < kCount; r += kThreads / kColumns) {
      to[r][c] = r >= first && r < last && c < columns ? widen(*at) : A(0);
      at += kThreads / kColumns * from.stride;
    }
  }
}

// sum[i][j] = left's row `2 i` from the thread's . right's row `16 j` from the thread's, over the width of both.
template <class T, class A>
__device__ __forceinline__ void multiply_over_width(A (&sum)[kM<A>][4], Storage<A>& storage, const Rows<const T>& left,
                                                    std::int64_t left0, Span left_exist, const Rows<const T>& right,
                                                    std::int64_t right0, Span right_exist) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(A));
  const Lane lane = Lane::here<A>();
  const bool busy = left0 + lane.row - lane.row % (2 * kM<A>) < left_exist.end;
#pragma unroll
  for (int i = 0; i < kM<A>; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[i][j] = A(0);
  }
  for (std::int64_t d = 0; d < left.width; d += kDepth) {
    __syncthreads();
    load_tile<kRows<A>, kDepth>(storage.factors.left, left, left0, left_exist, d);
    load_tile<kSide, kDepth>(storage.factors.right, right, right0, right_exist, d);
    __syncthreads();
    if (!busy) continue;
    const int depth = static_cast<int>(std::min<std::int64_t>(kDepth, left.width - d));
#pragma unroll 1
    for (int k = 0; k < depth; k += kVector) {
      Pack<A, kVector> b[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j] = load_pack<kVector>(&storage.factors.right[lane.column + 16 * j][k]);
#pragma unroll
      for (int i = 0; i < kM<A>; ++i) {
        const Pack<A, kVector> a = load_pack<kVector>(&storage.factors.left[lane.row + 2 * i][k]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int e = 0; e < kVector; ++e) sum[i][j] += a.element[e] * b[j].element[e];
        }
      }
    }
  }
}

// sum[c][i][·] += weights' rows times 64 columns of `right` from column0 + 64 c on. `depth` rows of it exist.
template <int kChunks, class T, class A>
__device__ __forceinline__ void multiply_over_rows(A (&sum)[kChunks][kM<A>][4], Storage<A>& storage,
                                                   const Rows<const T>& right, std::int64_t right0, Span exist,
                                                   std::int64_t column0) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(A));
  const Lane lane = Lane::here<A>();
  const int depth = static_cast<int>(std::min<std::int64_t>(kSide, exist.end - right0));
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const std::int64_t column = column0 + c * kSide;
    if (column >= right.width) break;
    __syncthreads();
    load_tile<kSide, kSide>(storage.values, right, right0, exist, column);
    __syncthreads();
    if (column + 4 * lane.column >= right.width) continue;
#pragma unroll 1
    for (int k = 0; k < depth; k += kVector) {
      Pack<A, 4> b[kVector];
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
#pragma unroll
        for (int j = 0; j < 4; j += kVector) {
          const Pack<A, kVector> part = load_pack<kVector>(&storage.values[k + e][4 * lane.column + j]);
#pragma unroll
          for (int l = 0; l < kVector; ++l) b[e].element[j + l] = part.element[l];
        }
      }
#pragma unroll
      for (int i = 0; i < kM<A>; ++i) {
        const Pack<A, kVector> a = load_pack<kVector>(&storage.weights[lane.row + 2 * i][k]);
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[c][i][j] += a.element[e] * b[e].element[j];
        }
      }
    }
  }
}

template <class A>
__device__ __forceinline__ void store_weights(Storage<A>& storage, const A (&values)[kM<A>][4]) {
  const Lane lane = Lane::here<A>();
#pragma unroll
  for (int i = 0; i < kM<A>; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) storage.weights[lane.row + 2 * i][lane.column + 16 * j] = values[i][j];
  }
}

// The running softmax of a thread's rows, in units of log 2; `sum` is of the thread's own columns.
template <class A>
struct Running {
  A maximum[kM<A>], sum[kM<A>];

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < kM<A>; ++i) maximum[i] = -infinity<A>(), sum[i] = A(0);
  }
};

// From logits to probabilities times 2^maximum; `shrink` is what earlier sums are due.
template <class A>
__device__ __forceinline__ void soften(A (&logits)[kM<A>][4], Running<A>& running, A (&shrink)[kM<A>]) {
#pragma unroll
  for (int i = 0; i < kM<A>; ++i) {
    A top = running.maximum[i];
#pragma unroll
    for (int j = 0; j < 4; ++j) top = std::fmax(top, logits[i][j]);
    top = warp_reduce<16>(top, Maximum{});
    const A shift = top == -infinity<A>() ? A(0) : top;  // all masked so far: 2^(-inf - 0) = 0
    shrink[i] = std::exp2(running.maximum[i] - shift);
    running.maximum[i] = top;
    running.sum[i] *= shrink[i];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      logits[i][j] = std::exp2(logits[i][j] - shift);
      running.sum[i] += logits[i][j];
    }
  }
}

// What earlier keys gave, brought to a new maximum.
template <int kChunks, class A>
__device__ __forceinline__ void shrink_sums(A (&sum)[kChunks][kM<A>][4], const A (&shrink)[kM<A>]) {
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int i = 0; i < kM<A>; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[c][i][j] *= shrink[i];
    }
  }
}

// The rows [row0, end) of `to`, from what multiply_over_rows summed, row i of a thread times factor[i].
template <int kChunks, class T, class A>
__device__ __forceinline__ void store_sums(const A (&sum)[kChunks][kM<A>][4], const A (&factor)[kM<A>],
                                           const Rows<T>& to, std::int64_t row0, std::int64_t end,
                                           std::int64_t column0) {
  const Lane lane = Lane::here<A>();
#pragma unroll
  for (int i = 0; i < kM<A>; ++i) {
    const std::int64_t row = row0 + lane.row + 2 * i;
    if (row >= end) break;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const std::int64_t column = column0 + c * kSide + 4 * lane.column;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (column + j < to.width) to.data[row * to.stride + column + j] = narrow<T>(sum[c][i][j] * factor[i]);
      }
    }
  }
}

}  // namespace drupe::cuda::fma_tile
