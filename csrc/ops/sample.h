// The next token, drawn from softmax(logits / temperature) over the last dimension, one for each row:
//
//   y[r] = the first index i where w_0 + … + w_i > u_r (w_0 + … + w_{V-1}),   w_i = e^((x_i - max x) / temperature)
//
// over the tokens that are left, in the order of their indices. Ranked by logit, of equal ones the lower index first,
//   top_k  leaves the k first;
//   top_p  of those the fewest whose mass is at least p times theirs;
//   min_p  of those the ones with w_i >= min_p, as the first has w_i = 1.
// Temperature 0 gives the first index of the largest logit.
//
//   u_r = (word 0 >> 8) 2^-24 + (word 1 >> 8) 2^-48 of philox4x32-10(counter, key), see ops/dropout.h;
//   counter = (b mod 2^32, b div 2^32, 0, 0), b = r + offset
//
// Weights are integers: 2^scale_bits w_i rounded to the nearest, by operations that every backend rounds alike. Their
// sums are exact in any order, so that all backends draw the same tokens, on any number of threads. A token less likely
// than about 2^-scale_bits times the likeliest is never drawn; -infinity never is.
// Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"; Nguyen et al. 2024, "Turning Up the Heat:
// Min-p Sampling for Creative and Coherent LLM Outputs".
#pragma once

#include <cstdint>
#include <optional>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

// What a kernel writes as the index of a row that nothing can be drawn from.
enum class SampleFault : std::int64_t { nan = -1, infinite = -2, empty = -3 };

struct SampleArgs {
  const void* logits;     // (rows, size)
  std::int64_t* indices;  // (rows,)
  std::int64_t rows, size;
  float factor;  // log2(e) / temperature, finite and normal; 0 for temperature 0
  float least;   // log2(min_p): the least (x - max) factor that is left
  int scale_bits;
  std::int64_t k;  // 1 to size
  double p;        // above 0, at most 1
  std::uint64_t seed, offset;
  Dtype dtype;  // f32, f16 or bf16
};

// 2^f for |f| <= 1/2: ln(2)^n / n!, by Horner's rule with each step rounded once.
struct Exp2Series {
  static constexpr int kTerms = 8;
  float term[kTerms] = {1.0f,           0.693147181f,   0.240226507f,    0.0555041087f,
                        0.00961812911f, 0.00133335581f, 0.000154035304f, 1.52527338e-05f};
};
// Below it, a weight is 0; the exponents of floats go further.
inline constexpr float kLeastExponent = -64.0f;

struct SampleOptions {
  double temperature = 1;
  std::optional<std::int64_t> top_k;
  std::optional<double> top_p, min_p;
  std::uint64_t seed = 0, offset = 0;
};

namespace ops {
// int64 of logits' shape without the last extent.
Tensor sample(const Tensor& logits, const SampleOptions& options);
// The largest that leaves room for the sum of `size` weights in 63 bits.
int sample_scale_bits(std::int64_t size);
}  // namespace ops

namespace cpu {
template <Isa>
void sample(const SampleArgs& args);
}  // namespace cpu

namespace cuda {
void sample(const SampleArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
