// The backward pass of an embedding (embedding.h, embedding_bag.h) and a step of its table's optimizer, in one: dy's
// rows are summed by index (sparse_rows.h), and each sum goes straight into its row of the table, in place. Rows that
// no index names are not touched, so that a step costs what it reads. With g' = grad_scale g + weight_decay w of a row
// w:
//
//   sgd              w -= lr g'
//   adam, adamw      as in optimizer.h, with states m, v (V, D)
//   rowwise_adagrad  s = s + mean(g'^2),  w -= lr / (sqrt(s) + eps) g', with one state s (V,)
//                    (Duchi et al. 2011, "Adaptive Subgradient Methods"; by rows as in Mudigere et al. 2022, "Software-
//                    Hardware Co-design for Fast and Scalable Training of Deep Learning Recommendation Models")
//
//   weight  (V, D) a float dtype; rows with any stride, adjacent columns; written in place
//   states  the accumulator's dtype, contiguous; written in place
//   dy      weight's dtype; a gradient that is the same memory as one of these is an error
//
// g stays in the accumulator's dtype; 16-bit rows may be rounded stochastically (core/rounding.h), with the same draws
// as in optimizer.h for the first parameter of a list.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/rounding.h"
#include "core/tensor.h"
#include "ops/embedding_bag.h"
#include "ops/optimizer.h"
#include "ops/sparse_rows.h"

namespace drupe {

enum class RowRule : std::uint8_t { sgd, adam, rowwise_adagrad };

struct RowStepArgs {
  RowRule rule = RowRule::sgd;
  void* weight = nullptr;
  std::int64_t row_stride = 0;  // elements
  void* state[2] = {};          // adam's means; rowwise_adagrad's sums
  AdamArgs options = {};        // of all rules, without the list
  Rounding rounding = {};

  SgdArgs sgd() const {
    return {.list = {},
            .lr = options.lr,
            .momentum = 0,
            .weight_decay = options.weight_decay,
            .l1 = 0,
            .grad_scale = options.grad_scale,
            .nesterov = false};
  }
};

namespace ops {

struct RowStepOptions {
  std::string optimizer;  // "sgd", "adam", "adamw" or "rowwise_adagrad"
  AdamArgs values;
  Rounding rounding;
};

// Checks what a step writes, for a gradient dy (..., D).
RowStepArgs describe_row_step(const char* op, const Tensor& weight, const Tensor& dy, const std::vector<Tensor>& states,
                              const RowStepOptions& options);

// dy (*indices.shape, D)
void embedding_step(const Tensor& weight, const Tensor& dy, const Tensor& indices, const std::vector<Tensor>& states,
                    const std::optional<std::int64_t>& padding_idx, const RowStepOptions& step);
// dy (B, D), mode sum or mean
void embedding_bag_step(const Tensor& weight, const Tensor& dy, const Tensor& indices,
                        const std::optional<Tensor>& offsets, const std::optional<Tensor>& scale,
                        const std::vector<Tensor>& states, const BagOptions& bags, const RowStepOptions& step);

}  // namespace ops

}  // namespace drupe
