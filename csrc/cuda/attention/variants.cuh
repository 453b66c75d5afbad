// The parts of attention that have files of their own.
#pragma once

#include "ops/attention.h"

namespace drupe::cuda {

// Of float16 and bfloat16, D and Dv up to kMostWidth.
void attention_mma(const AttentionArgs& args, Stream stream);

// dbias, given delta, of the accumulator's type, (B, Hq, Sq).
void attention_bias_gradient(const AttentionBackwardArgs& args, const void* delta, Stream stream);

}  // namespace drupe::cuda
