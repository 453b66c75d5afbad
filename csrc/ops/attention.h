// Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1):
//
//   y[b, h, i] = sum_j p[b, h, i, j] v[b, h', j],   p = softmax over j of (scale q[b, h, i] . k[b, h', j] + bias)
//
//   q      (B, Hq, Sq, D)      float dtypes, all alike
//   k      (B, Hkv, Skv, D)    Hq a multiple of Hkv; query head h reads h' = h / (Hq / Hkv)
//   v      (B, Hkv, Skv, Dv)
//   bias   broadcastable to (B, Hq, Sq, Skv); -infinity masks
//   y      (B, Hq, Sq, Dv), a view of fresh (B, Sq, Hq, Dv) memory, so that (B, Sq, Hq Dv) is a free reshape;
//          so are the gradients of q, k and v whose heads lie like that, else they are contiguous
//   lse    (B, Hq, Sq), float64 for float64 and float32 otherwise: log of the sum over j of e^logit; -infinity where
//          everything is masked
//
// Query i stands at position p = i + Skv - Sq of the keys (aligned at the end) and may see key j where
//   p - left <= j <= p + right   (window; causal is right = 0)
//   j < lengths[b]               and i < query_lengths[b]
// Keys and blocks that nobody sees are never read. A query that sees nothing gives zeros, and zero gradients.
//
// Any strides over B, H and S; the last dimension is copied if its stride is not 1. No Sq x Skv matrix exists: the
// forward pass rescales running sums (Milakov & Gimelshein 2018; Dao et al. 2022), the backward pass computes p again
// from lse. All arithmetic is float32 for float16 and bfloat16, the dtype itself otherwise.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

// A (B, H, S, D) operand; strides in elements, the last one is 1.
struct AttentionOperand {
  void* data = nullptr;
  std::int64_t batch = 0, head = 0, row = 0;
};

struct AttentionArgs {
  std::int64_t B, Hq, Hkv, Sq, Skv, D, Dv;
  AttentionOperand q, k, v, y;
  const void* bias = nullptr;
  std::int64_t bias_batch = 0, bias_head = 0, bias_row = 0, bias_col = 0;
  const std::int64_t* lengths = nullptr;        // (B,), in [0, Skv]; null: all Skv
  const std::int64_t* query_lengths = nullptr;  // (B,), in [0, Sq]; null: all Sq
  std::int64_t left, right;                     // at most Sq + Skv
  double scale;
  void* lse;  // (B, Hq, Sq)
  Dtype dtype;
};

struct AttentionBackwardArgs {
  AttentionArgs forward;
  AttentionOperand dy;
  AttentionOperand dq, dk, dv;      // data is null where no gradient is wanted
  void* dbias = nullptr;            // contiguous, of bias_shape
  std::int64_t bias_shape[4] = {};  // each extent that of (B, Hq, Sq, Skv), or 1
};

struct AttentionOptions {
  std::optional<Tensor> bias, lengths, query_lengths;
  std::optional<std::int64_t> left, right;  // nullopt: unbounded
  std::optional<double> scale;              // nullopt: 1 / sqrt(D)
};

struct AttentionGradients {
  Tensor dq, dk, dv, dbias;  // undefined where not asked for
};

namespace ops {

// (y, lse)
std::pair<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options);

struct AttentionWanted {
  bool dq = true, dk = true, dv = true, dbias = true;
};
AttentionGradients attention_backward(const Tensor& dy, const Tensor& y, const Tensor& lse, const Tensor& q,
                                      const Tensor& k, const Tensor& v, const AttentionOptions& options,
                                      const AttentionWanted& wanted);

}  // namespace ops

namespace cpu {
template <Isa>
void attention(const AttentionArgs& args);
template <Isa>
void attention_backward(const AttentionBackwardArgs& args);
}  // namespace cpu

namespace cuda {
void attention(const AttentionArgs& args, Stream stream);
void attention_backward(const AttentionBackwardArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
