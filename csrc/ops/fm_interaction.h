// The second-order term of a factorization machine: all products of two different fields' vectors,
//   y[b] = sum over f < g of v[b, f] . v[b, g] = 1/2 sum_e ((sum_f v[b, f, e])^2 - sum_f v[b, f, e]^2)
// (S. Rendle, "Factorization Machines", ICDM 2010, lemma 3.1), in the accumulator's dtype.
//
//   v  (B, F, E) a float dtype; copied unless contiguous
//   y  (B,) of v's dtype; zeros where F < 2 or E = 0
//
// Backward: dv[b, f, e] = dy[b] (sum_g v[b, g, e] - v[b, f, e]).
#pragma once

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

// Contiguous arrays of `dtype`.
struct FmInteractionArgs {
  const void* v;
  void* y;         // forward only
  const void* dy;  // backward only: (B,)
  void* dv;        // backward only: as v
  std::int64_t B, F, E;
  Dtype dtype;
};

namespace ops {

Tensor fm_interaction(const Tensor& v);
Tensor fm_interaction_backward(const Tensor& dy, const Tensor& v);

}  // namespace ops

namespace cpu {
template <Isa>
void fm_interaction(const FmInteractionArgs& args);
template <Isa>
void fm_interaction_backward(const FmInteractionArgs& args);
}  // namespace cpu

namespace cuda {
void fm_interaction(const FmInteractionArgs& args, Stream stream);
void fm_interaction_backward(const FmInteractionArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
