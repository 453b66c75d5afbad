// Recurrent layers: a hidden state h (B, H) that walks the T steps of x, in one direction or in both.
//
//   lstm   a = W_ih x_t + b_ih + W_hh h + b_hh, in quarters i, f, g, o of 4 H
//          i, f, o = sigmoid(·),  g = tanh(·),  c' = f c + i g,  h' = o tanh(c')
//   gru    a = W_ih x_t + b_ih,  u = W_hh h + b_hh, in thirds r, z, n of 3 H
//          r = sigmoid(a_r + u_r),  z = sigmoid(a_z + u_z),  n = tanh(a_n + r u_n),  h' = (1 - z) n + z h
//
//   x          (T, B, I)    float dtypes, all alike
//   weight_ih  (G H, I), weight_hh (G H, H), bias_ih and bias_hh (G H,) or left out; of each direction, G = 4 or 3
//   h0, c0     (D, B, H)    D directions, 1 or 2; zeros where left out
//   lengths    (B,)         int32 or int64 in [0, T]; T where left out
//   y          (T, B, D H)  h' of every step, the forward direction's first
//   h, c       (D, B, H)    after the last step
//
// The second direction walks from the last step to the first. At steps from lengths[b] on, sequence b's states stay as
// they are and y is 0: its backward direction starts at its own end. T = 0 leaves the states as they are.
//
// The input's share of all steps is one product, made before the walk; after the walk backwards, so are the gradients
// of x and of the weights. For float16 and bfloat16 each share of a gate is summed in float32 and then rounded to the
// dtype (on the CPU W_hh h is not, nor are the biases), and so are h at each step and the kept gates; c is float32. The
// precision "high"
// (gemm.h) is for the products before and after the walk. Hochreiter & Schmidhuber 1997, "Long Short-Term Memory";
// Gers, Schmidhuber & Cummins 2000, "Learning to Forget"; Cho et al. 2014, "Learning Phrase Representations using RNN
// Encoder-Decoder". The GRU applies r after the product, as in version 1 of the latter's arXiv:1406.1078.
#pragma once

#include <optional>
#include <vector>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

enum class Cell : std::uint8_t { lstm, gru };

constexpr int gates_of(Cell cell) {
  return cell == Cell::lstm ? 4 : 3;
}

// Everything is contiguous.
struct RecurrentDirection {
  const void* weight;  // W_hh
  const void* bias;    // b_hh, or null
  void* gates;         // (T, B, G H): before the walk W_ih x + b_ih, after it the gates, if they are kept. On the CPU
                       // b_ih, or null, is apart: adding it costs the cells less than the product
  void* hidden;        // (T, B, H): h before each step; null where not kept, as is memory
  void* memory;        // (T, B, H) of the accumulator's dtype: c before each step, or u_n at each
  const void* input_bias = nullptr;
};

struct RecurrentArgs {
  Cell cell;
  std::int64_t T, B, H;
  int directions;
  RecurrentDirection direction[2];
  const void* h0;
  const void* c0;  // null for gru, as is c
  void* y;
  void* h;
  void* c;
  const std::int64_t* lengths;  // (B,), or null
  Dtype dtype;
  bool keep;  // what the way back needs; always on a GPU, whose steps read it

  // Which step of x a direction comes to after so many others.
  constexpr std::int64_t time(int d, std::int64_t step) const { return d == 0 ? step : T - 1 - step; }
};

struct RecurrentBackwardArgs {
  RecurrentArgs forward;  // h0, c0, y, h and c are null
  const void* dy;
  const void* dh;
  const void* dc;       // null for gru, as is dc0
  void* dinput[2];      // (T, B, G H) of each direction: the gradients of W_ih x + b_ih
  void* drecurrent[2];  // the same of W_hh h + b_hh; for lstm, whose gates add both, that of dinput
  void* dh0;
  void* dc0;
};

struct RecurrentWeights {
  Tensor weight_ih, weight_hh;
  std::optional<Tensor> bias_ih, bias_hh;
};

struct RecurrentStates {
  std::optional<Tensor> h, c;
};

struct RecurrentResult {
  Tensor y, h, c;             // c is undefined for gru
  std::vector<Tensor> saved;  // for the way back: gates, hidden, memory of each direction
};

// Which gradients are wanted: of x, and of each direction's weights.
struct RecurrentWants {
  struct Weights {
    bool weight_ih = true, weight_hh = true, bias_ih = true, bias_hh = true;
  };
  bool x = true;
  Weights weights[2];
};

struct RecurrentGradients {
  Tensor dx, dh0, dc0;  // dc0 is undefined for gru, as is what is not wanted
  std::vector<RecurrentWeights> dweights;
};

namespace ops {

// One or two directions. Without `keep`, what is saved may be empty. Errors name "lstm" or "gru".
RecurrentResult recurrent(Cell cell, const Tensor& x, const std::vector<RecurrentWeights>& weights,
                          const RecurrentStates& initial, const std::optional<Tensor>& lengths, bool keep);
// dy, dh, dc: zeros where left out.
RecurrentGradients recurrent_backward(Cell cell, const std::optional<Tensor>& dy, const RecurrentStates& dfinal,
                                      const Tensor& x, const std::vector<RecurrentWeights>& weights,
                                      const std::optional<Tensor>& lengths, const std::vector<Tensor>& saved,
                                      const RecurrentWants& wants);

}  // namespace ops

namespace cpu {
template <Isa>
void recurrent(const RecurrentArgs& args);
template <Isa>
void recurrent_backward(const RecurrentBackwardArgs& args);
}  // namespace cpu

namespace cuda {
void recurrent(const RecurrentArgs& args, Stream stream);
void recurrent_backward(const RecurrentBackwardArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
