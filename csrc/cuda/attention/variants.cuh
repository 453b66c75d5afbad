// The parts of attention that have files of their own.
#pragma once

#include <algorithm>
#include <memory>

#include "ops/attention.h"

namespace drupe::cuda {

// Whether the tensor cores serve this problem: 16-bit formats, head dimensions that fit, keys that 32 bits count.
inline constexpr std::int64_t kMostWidth = 256;
inline bool suits_mma(const AttentionArgs& args) {
  return size_of(args.dtype) == 2 && std::max(args.D, args.Dv) <= kMostWidth &&
         std::max(args.Sq, args.Skv) < std::int64_t{1} << 30;
}

// The operand itself where every row begins and ends at a multiple of 16 bytes, or a copy padded with zeros where that
// is so. `memory` must live until the kernels that read it are launched.
struct Aligned {
  AttentionOperand operand;
  std::shared_ptr<void> memory;
};
Aligned align(const AttentionOperand& operand, std::int64_t B, std::int64_t H, std::int64_t S, std::int64_t width,
              Dtype dtype, Stream stream);

// Puts aligned operands into the arguments, and keeps their memory.
struct AlignedInputs {
  Aligned q, k, v;
  AlignedInputs(AttentionArgs& args, Stream stream)
      : q(align(args.q, args.B, args.Hq, args.Sq, args.D, args.dtype, stream)),
        k(align(args.k, args.B, args.Hkv, args.Skv, args.D, args.dtype, stream)),
        v(align(args.v, args.B, args.Hkv, args.Skv, args.Dv, args.dtype, stream)) {
    args.q = q.operand, args.k = k.operand, args.v = v.operand;
  }
};

// Whether few queries look at many keys, as where a language model decodes.
inline bool suits_decode(const AttentionArgs& args) {
  return args.Sq <= 16 && args.Skv >= 128;
}

// Of problems that suit.
void attention_decode(const AttentionArgs& args, Stream stream);
void attention_mma(const AttentionArgs& args, Stream stream);

// dq, dk and dv of problems that suit, given delta and `shift`, what 2^x is divided by: lse in units of log 2,
// +infinity where a query sees nothing. Both (B, Hq, Sq).
void attention_backward_mma(const AttentionBackwardArgs& args, const float* shift, const float* delta, Stream stream);

// dbias, given delta, of the accumulator's type, (B, Hq, Sq).
void attention_bias_gradient(const AttentionBackwardArgs& args, const void* delta, Stream stream);

}  // namespace drupe::cuda
