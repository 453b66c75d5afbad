// One tile of logits again, and of their gradients, for the backward kernels by FMA. Either queries own the rows of the
// tile and keys the columns, or with kKeysOwn the other way round.
#pragma once

#include "cuda/attention/fma.cuh"
#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {

template <class A>
struct BackwardStorage {
  fma_tile::Storage<A> tiles;
  A lse[fma_tile::kSide], delta[fma_tile::kSide];  // of the tile's queries; lse in units of log 2
};

// What belongs to one query head.
template <class T>
struct Head {
  using A = Accumulator<T>;
  Rows<const T> q, k, v, dy;
  const T* bias;
  const A *lse, *delta;

  __device__ __forceinline__ Head(const AttentionBackwardArgs& args, std::int64_t b, std::int64_t h, const A* deltas) {
    const AttentionArgs& f = args.forward;
    const std::int64_t kv_head = h / (f.Hq / f.Hkv), row = (b * f.Hq + h) * f.Sq;
    q = rows_of<const T>(f.q, b, h, f.D);
    k = rows_of<const T>(f.k, b, kv_head, f.D);
    v = rows_of<const T>(f.v, b, kv_head, f.Dv);
    dy = rows_of<const T>(args.dy, b, h, f.Dv);
    bias = static_cast<const T*>(f.bias);
    if (bias) bias += b * f.bias_batch + h * f.bias_head;
    lse = static_cast<const A*>(f.lse) + row;
    delta = deltas + row;
  }
  __device__ __forceinline__ const T* bias_at(const AttentionArgs& f, std::int64_t query, std::int64_t key) const {
    return bias ? bias + query * f.bias_row + key * f.bias_col : nullptr;
  }
};

// lse and delta of kCount queries; +infinity, which makes P zero, where a query sees nothing or there is none.
template <int kCount, class T, class A>
__device__ __forceinline__ void load_query_numbers(BackwardStorage<A>& storage, const Head<T>& head,
                                                   std::int64_t query0, Span exist) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= kCount) return;
  const bool valid = query0 + i < exist.end;
  const A lse = valid ? head.lse[query0 + i] : -infinity<A>();
  storage.lse[i] = lse == -infinity<A>() ? infinity<A>() : static_cast<A>(kLog2E) * lse;
  storage.delta[i] = valid ? head.delta[query0 + i] : A(0);
}

// From products q . k to P, which becomes the tile's weights.
template <bool kKeysOwn, class T, class A>
__device__ __forceinline__ void finish_probabilities(A (&p)[fma_tile::kM<A>][4], BackwardStorage<A>& storage,
                                                     const AttentionArgs& f, const Mask& mask, const T* bias) {
  const auto lane = fma_tile::Lane::here<A>();
  const A factor = static_cast<A>(f.scale * kLog2E);
#pragma unroll
  for (int i = 0; i < fma_tile::kM<A>; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = lane.row + 2 * i, column = lane.column + 16 * j;
      const int query = kKeysOwn ? column : row, key = kKeysOwn ? row : column;
      if (!mask.sees(query, key)) {
        p[i][j] = A(0);
        continue;
      }
      A logit = factor * p[i][j];
      if (bias) logit += static_cast<A>(kLog2E) * widen(bias[query * f.bias_row + key * f.bias_col]);
      p[i][j] = std::exp2(logit - storage.lse[query]);
    }
  }
  fma_tile::store_weights(storage.tiles, p);
}

// From products dy . v to dS, given P in the thread's own weights; exactly zero where P is.
template <bool kKeysOwn, class A>
__device__ __forceinline__ void finish_logit_gradients(A (&ds)[fma_tile::kM<A>][4], const BackwardStorage<A>& storage) {
  const auto lane = fma_tile::Lane::here<A>();
#pragma unroll
  for (int i = 0; i < fma_tile::kM<A>; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = lane.row + 2 * i, column = lane.column + 16 * j;
      const A p = storage.tiles.weights[row][column];
      ds[i][j] = p == A(0) ? A(0) : p * (ds[i][j] - storage.delta[kKeysOwn ? column : row]);
    }
  }
}

template <int kChunks, class T, class A>
__device__ __forceinline__ void store_gradient(const A (&sum)[kChunks][fma_tile::kM<A>][4], A factor, const Rows<T>& to,
                                               std::int64_t row0, std::int64_t end, std::int64_t column0) {
  A factors[fma_tile::kM<A>];
#pragma unroll
  for (int i = 0; i < fma_tile::kM<A>; ++i) factors[i] = factor;
  fma_tile::store_sums(sum, factors, to, row0, end, column0);
}

}  // namespace drupe::cuda
