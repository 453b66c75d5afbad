// Optimizer steps over lists of tensors, in place, in one sweep. With g' = grad_scale g + l1 sign(p):
//
//   sgd      g = g' + weight_decay p;  b = momentum b + g;  p -= lr (nesterov ? g + momentum b : b)
//            (Sutskever et al. 2013; without momentum p -= lr g)
//   adam     g = g' + weight_decay p;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//            p -= lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)   (Kingma & Ba 2015, algorithm 1)
//   adamw    the same with g = g' and p *= 1 - lr weight_decay first
//            (Loshchilov & Hutter 2019, algorithm 2)
//
//   rmsprop  g = g' + weight_decay p;  v = alpha v + (1 - alpha) g^2;  u = g / (sqrt(v) + eps)
//            centered: a = alpha a + (1 - alpha) g and sqrt(v - a^2) instead     (Hinton 2012; Graves 2013, 4.2)
//            momentum: b = momentum b + u and p -= lr b, else p -= lr u
//
// params and grads have one float dtype each pair; states have the accumulator's dtype (float32, or float64 for
// float64) and the parameter's shape. Arithmetic is the accumulator's. All states of a parameter that accumulates in
// float32 may be narrow instead (core/narrow_state.h), unless rmsprop is centered: bfloat16, or uint8 with scales[i]
// (S, ceil(numel / 256)) float32, S the number of its states. Parameters and states must not overlap; a
// gradient that shares memory with one of them is copied first, as is anything that is not dense.
// A 16-bit parameter may have a float32 master: p is read from it, and the new p written to it, and rounded to nearest
// to the parameter. Without one, p may be rounded stochastically (core/rounding.h).
// With rows[i], grads[i] is (U, D) and holds the rows rows[i] (U,) int64, ascending and unique, of a gradient that is
// zero elsewhere: the step touches these rows of the parameter and its states alone (decay and momentum included).
// Narrow states take no rows, and have no kernel for a GPU.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "core/narrow_state.h"
#include "core/rounding.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

inline constexpr int kMaxStates = 3;

struct StepTensor {
  void* param;
  float* master;  // null where there is none
  const void* grad;
  void* state[kMaxStates];
  float* scales;             // of states in uint8, state by state; else null
  const std::int64_t* rows;  // null where the gradient is dense
  std::int64_t width;        // elements a row, where there are rows
  std::int64_t size;         // elements of the gradient
  std::int64_t number;       // in the list
  Dtype dtype, state_dtype;

  float* scales_of(int k) const { return scales ? scales + k * state_blocks(size) : nullptr; }
};

// The tensors side by side: tensor i takes places [starts[i], starts[i] + size) of the sweep.
struct StepList {
  const StepTensor* tensors;
  const std::int64_t* starts;  // count + 1 of them
  std::int64_t count;
  Rounding rounding;
};

// What a step reads from a device's memory, so that a captured graph can be replayed with other values; null where the
// arguments have it. Where the steps are there, the draws of narrow states are those of the stream at the rounding's
// offset + the step.
struct StepScalars {
  const double* lr = nullptr;
  const double* grad_scale = nullptr;    // times the arguments'
  std::int64_t* const* steps = nullptr;  // one for each tensor: the number of its steps, which this one is added to

  bool any() const { return lr || grad_scale || steps; }
};

struct SgdArgs {
  StepList list;
  double lr, momentum, weight_decay, l1, grad_scale;
  bool nesterov;
  StepScalars scalars = {};
};

struct AdamArgs {
  StepList list;
  double lr, beta1, beta2, eps, weight_decay, l1, grad_scale;
  std::int64_t step;
  bool decoupled;  // adamw
  StepScalars scalars = {};
};

struct RmspropArgs {
  StepList list;
  double lr, alpha, eps, momentum, weight_decay, l1, grad_scale;
  bool centered;
  StepScalars scalars = {};
};

struct SumOfSquaresArgs {
  const void* x;
  std::int64_t size;
  Dtype dtype;
  bool wide;         // accumulate in double: slower, and out of reach of overflow
  double* partials;  // one for each kSquaresChunk elements
};
inline constexpr std::int64_t kSquaresChunk = 16384;

// For devices: all tensors at once, and out of reach of overflow.
struct SquaresTensor {
  const void* x;
  std::int64_t size;
  Dtype dtype;
};
struct SquaresList {
  const SquaresTensor* tensors;
  std::int64_t count;
  double sum = 0;          // found, ...
  double* clip = nullptr;  // ... or on the device, what ops::clip_factor gives
  double max_norm = 0;
};

namespace ops {

using Tensors = std::vector<Tensor>;
using Optionals = std::vector<std::optional<Tensor>>;

// StepScalars as tensors: float64 and int64, of no dimensions, on the parameters' device, which is not the CPU. There
// is a step for each parameter, or none.
struct DeviceScalars {
  std::optional<Tensor> lr, grad_scale;
  Tensors steps;
};

// Throws unless the value is finite and in [low, below).
void check_hyperparameter(const char* op, const char* name, double value, double low = 0,
                          double below = std::numeric_limits<double>::infinity());

// What all steps take. rows, masters and scales have one entry for each parameter; the latter two may also be empty.
struct StepInputs {
  Tensors params, grads;
  Optionals rows, masters, scales;
  Rounding rounding;
  DeviceScalars scalars;
};

// buffers is empty where momentum is 0.
void sgd(const StepInputs& inputs, const Tensors& buffers, SgdArgs options);
// adam, and adamw with options.decoupled. step counts from 1.
void adam(const StepInputs& inputs, const Tensors& exp_avgs, const Tensors& exp_avg_sqs, AdamArgs options);
// grad_avgs is empty unless centered, buffers where momentum is 0.
void rmsprop(const StepInputs& inputs, const Tensors& square_avgs, const Tensors& grad_avgs, const Tensors& buffers,
             RmspropArgs options);
// The sum of all the tensors' squared elements, float dtypes; finite wherever double can hold it.
double sum_of_squares(const Tensors& tensors);
// (2,) float64: the norm of all the elements, and by what clipping to max_norm multiplies them, min(1, max_norm /
// norm), or 1 where the norm is not finite. A device is not waited for.
Tensor clip_factor(const Tensors& tensors, double max_norm);

}  // namespace ops

namespace cpu {
template <Isa>
void sgd(const SgdArgs& args);
template <Isa>
void adam(const AdamArgs& args);
template <Isa>
void rmsprop(const RmspropArgs& args);
template <Isa>
void sum_of_squares(const SumOfSquaresArgs& args);
}  // namespace cpu

namespace cuda {
void sgd(const SgdArgs& args, Stream stream);
void adam(const AdamArgs& args, Stream stream);
void rmsprop(const RmspropArgs& args, Stream stream);
void sum_of_squares(SquaresList& list, Stream stream);
}  // namespace cuda

}  // namespace drupe
