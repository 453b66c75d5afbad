// The parts of the backward pass that have files of their own.
#pragma once

#include "ops/attention.h"

namespace drupe::cuda {

// dbias, given delta, of the accumulator's type, (B, Hq, Sq).
void attention_bias_gradient(const AttentionBackwardArgs& args, const void* delta, Stream stream);

}  // namespace drupe::cuda
