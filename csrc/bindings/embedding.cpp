// Table lookups, and gradients made of rows.
#include "ops/embedding.h"
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/embedding_bag.h"
#include "ops/embedding_step.h"
#include "ops/fm_interaction.h"
#include "ops/sparse_rows.h"
#include "ops/table_rows.h"

namespace drupe::bindings {
namespace {

using OptionalTensor = std::optional<Tensor>;
using OptionalIndex = std::optional<std::int64_t>;
using Tables = std::vector<std::int64_t>;

void bind_embedding_bag(py::module_& m) {
  m.def(
      "embedding_bag",
      [](const Tensor& weight, const Tensor& indices, const OptionalTensor& offsets, const OptionalTensor& scale,
         const std::string& mode, OptionalIndex padding_idx, const Tables& tables, bool keep_argmax) {
        return ops::embedding_bag(weight, indices, offsets, scale, {mode, padding_idx, tables}, keep_argmax);
      },
      py::arg("weight"), py::arg("indices"), py::arg("offsets"), py::arg("scale"), py::arg("mode"),
      py::arg("padding_idx"), py::arg("tables"), py::arg("keep_argmax"), Nogil());
  m.def(
      "embedding_bag_backward",
      [](const Tensor& dy, const Tensor& indices, const OptionalTensor& offsets, const OptionalTensor& scale,
         const OptionalTensor& argmax, std::int64_t num_rows, const std::string& mode, OptionalIndex padding_idx,
         const Tables& tables) {
        return ops::embedding_bag_backward(dy, indices, offsets, scale, argmax, num_rows, {mode, padding_idx, tables});
      },
      py::arg("dy"), py::arg("indices"), py::arg("offsets"), py::arg("scale"), py::arg("argmax"), py::arg("num_rows"),
      py::arg("mode"), py::arg("padding_idx"), py::arg("tables"), Nogil());
  m.def(
      "embedding_bag_backward_sparse",
      [](const Tensor& dy, const Tensor& indices, const OptionalTensor& offsets, const OptionalTensor& scale,
         const OptionalTensor& argmax, std::int64_t num_rows, const std::string& mode, OptionalIndex padding_idx,
         const Tables& tables) {
        return ops::embedding_bag_backward_sparse(dy, indices, offsets, scale, argmax, num_rows,
                                                  {mode, padding_idx, tables});
      },
      py::arg("dy"), py::arg("indices"), py::arg("offsets"), py::arg("scale"), py::arg("argmax"), py::arg("num_rows"),
      py::arg("mode"), py::arg("padding_idx"), py::arg("tables"), Nogil());
  m.def(
      "embedding_bag_backward_scale",
      [](const Tensor& dy, const Tensor& weight, const Tensor& indices, const OptionalTensor& offsets,
         OptionalIndex padding_idx, const Tables& tables) {
        return ops::embedding_bag_backward_scale(dy, weight, indices, offsets, {"sum", padding_idx, tables});
      },
      py::arg("dy"), py::arg("weight"), py::arg("indices"), py::arg("offsets"), py::arg("padding_idx"),
      py::arg("tables"), Nogil());
}

ops::RowStepOptions step_options(const std::string& optimizer, double lr, double beta1, double beta2, double eps,
                                 double weight_decay, double grad_scale, std::int64_t step, const Rounding& rounding) {
  return {.optimizer = optimizer,
          .values = {.list = {},
                     .lr = lr,
                     .beta1 = beta1,
                     .beta2 = beta2,
                     .eps = eps,
                     .weight_decay = weight_decay,
                     .l1 = 0,
                     .grad_scale = grad_scale,
                     .step = step,
                     .decoupled = false},
          .rounding = rounding};
}

void bind_steps(py::module_& m) {
  const auto define = [&](const char* name, auto run, auto... own) {
    m.def(name, run, py::arg("weight"), py::arg("dy"), py::arg("indices"), py::arg("states"), own...,
          py::arg("padding_idx"), py::kw_only(), py::arg("optimizer"), py::arg("lr"), py::arg("beta1"),
          py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("grad_scale"), py::arg("step"),
          py::arg("stochastic_rounding"), py::arg("seed"), py::arg("offset"), Nogil());
  };
  define("embedding_step",
         [](const Tensor& weight, const Tensor& dy, const Tensor& indices, const std::vector<Tensor>& states,
            OptionalIndex padding_idx, const std::string& optimizer, double lr, double beta1, double beta2, double eps,
            double weight_decay, double grad_scale, std::int64_t step, bool stochastic_rounding, std::uint64_t seed,
            std::uint64_t offset) {
           ops::embedding_step(weight, dy, indices, states, padding_idx,
                               step_options(optimizer, lr, beta1, beta2, eps, weight_decay, grad_scale, step,
                                            {stochastic_rounding, seed, offset}));
         });
  define(
      "embedding_bag_step",
      [](const Tensor& weight, const Tensor& dy, const Tensor& indices, const std::vector<Tensor>& states,
         const OptionalTensor& offsets, const OptionalTensor& scale, const std::string& mode, const Tables& tables,
         OptionalIndex padding_idx, const std::string& optimizer, double lr, double beta1, double beta2, double eps,
         double weight_decay, double grad_scale, std::int64_t step, bool stochastic_rounding, std::uint64_t seed,
         std::uint64_t offset) {
        ops::embedding_bag_step(weight, dy, indices, offsets, scale, states, {mode, padding_idx, tables},
                                step_options(optimizer, lr, beta1, beta2, eps, weight_decay, grad_scale, step,
                                             {stochastic_rounding, seed, offset}));
      },
      py::arg("offsets"), py::arg("scale"), py::arg("mode"), py::arg("tables"));
}

}  // namespace

void bind_embedding(py::module_& m) {
  m.def("embedding", &ops::embedding, py::arg("weight"), py::arg("indices"), py::arg("padding_idx") = py::none(),
        Nogil());
  m.def("embedding_backward", &ops::embedding_backward, py::arg("dy"), py::arg("indices"), py::arg("num_rows"),
        py::arg("padding_idx") = py::none(), Nogil());
  m.def("embedding_backward_sparse", &ops::embedding_backward_sparse, py::arg("dy"), py::arg("indices"),
        py::arg("num_rows"), py::arg("padding_idx") = py::none(), Nogil());
  bind_embedding_bag(m);
  bind_steps(m);
  m.def("table_rows", &ops::table_rows, py::arg("ids"), py::arg("offsets"), py::arg("tables"), py::arg("seed"),
        Nogil());
  m.def("hash_ids", py::overload_cast<const Tensor&, std::int64_t, std::uint64_t>(&ops::hash_ids), py::arg("ids"),
        py::arg("rows"), py::arg("seed"), Nogil());
  m.def("hash_ids",
        py::overload_cast<const Tensor&, const OptionalTensor&, const Tables&, std::uint64_t>(&ops::hash_ids),
        py::arg("ids"), py::arg("offsets"), py::arg("tables"), py::arg("seed"), Nogil());
  m.def("fm_interaction", &ops::fm_interaction, py::arg("v"), Nogil());
  m.def("fm_interaction_backward", &ops::fm_interaction_backward, py::arg("dy"), py::arg("v"), Nogil());
  m.def("merge_rows", &ops::merge_rows, py::arg("indices"), py::arg("values"), Nogil());
  m.def("add_rows", &ops::add_rows, py::arg("dense"), py::arg("indices"), py::arg("values"), Nogil());
}

}  // namespace drupe::bindings
