// The loop nest over tensors of one shape, as small as their strides allow.
#pragma once

#include <array>
#include <initializer_list>

#include "core/tensor.h"

namespace drupe {

inline constexpr int kMaxOperands = 4;

// Outermost dimension first; strides count elements. No extent is 1; an empty shape is one element.
struct Loops {
  Dims shape;
  std::array<Dims, kMaxOperands> strides;
};

// Drops extents of 1, sorts by the first tensor's strides (its broadcast dimensions outermost, then the largest first),
// and merges neighbours that all tensors walk as one. All have the same shape and no extent of 0.
Loops collapse(std::initializer_list<const Tensor*> tensors);

}  // namespace drupe
