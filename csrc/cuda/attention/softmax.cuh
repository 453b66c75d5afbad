// The running softmax of a warp's tile of logits (Milakov & Gimelshein 2018), in its registers.
#pragma once

#include "cuda/attention/problem.cuh"
#include "cuda/tile/mma.cuh"
#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {

// The running softmax of a lane's rows. 2^(unit x) is e^logit for the x that are kept.
template <int kRowBlocks>
struct Running {
  float maximum[kRowBlocks][2], sum[kRowBlocks][2];
  float unit;

  __device__ __forceinline__ void start(float of) {
    unit = of;
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) maximum[i][r] = -infinity<float>(), sum[i][r] = 0.0f;
    }
  }
};

// From logits to probabilities times 2^maximum; what earlier keys gave shrinks to the new maximum.
template <int kM, int kKeys, int kWidth>
__device__ __forceinline__ void soften(WarpTile<kM, kKeys>& logits, Running<kM / 16>& running,
                                       WarpTile<kM, kWidth>& output) {
#pragma unroll
  for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = running.maximum[i][r];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
        top = std::fmax(top, std::fmax(logits.d[i][j][2 * r], logits.d[i][j][2 * r + 1]));
      top = warp_reduce<4>(top, Maximum{});
      const float shift = top == -infinity<float>() ? 0.0f : top * running.unit;  // all masked so far: 2^-inf = 0
      const float shrink = ex2_approx(running.maximum[i][r] * running.unit - shift);
      float sum = running.sum[i][r] * shrink;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          logits.d[i][j][e] = ex2_approx(logits.d[i][j][e] * running.unit - shift);
          sum += logits.d[i][j][e];
        }
      }
      running.maximum[i][r] = top;
      running.sum[i][r] = sum;
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
        output.d[i][j][2 * r] *= shrink;
        output.d[i][j][2 * r + 1] *= shrink;
      }
    }
  }
}

}  // namespace drupe::cuda
