// The losses.
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/bce_with_logits.h"
#include "ops/cross_entropy.h"
#include "ops/ctc_loss.h"
#include "ops/mse.h"

namespace drupe::bindings {

void bind_loss(py::module_& m) {
  m.def(
      "cross_entropy",
      [](const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& weight, std::int64_t ignore_index,
         double label_smoothing, const std::string& reduction) {
        return ops::cross_entropy(logits, labels, weight, {ignore_index, label_smoothing, reduction});
      },
      py::arg("logits"), py::arg("labels"), py::arg("weight"), py::arg("ignore_index"), py::arg("label_smoothing"),
      py::arg("reduction"), Nogil());
  m.def(
      "cross_entropy_backward",
      [](const Tensor& dloss, const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& weight,
         const Tensor& sums, const Tensor& total, std::int64_t ignore_index, double label_smoothing,
         const std::string& reduction) {
        return ops::cross_entropy_backward(dloss, logits, labels, weight, sums, total,
                                           {ignore_index, label_smoothing, reduction});
      },
      py::arg("dloss"), py::arg("logits"), py::arg("labels"), py::arg("weight"), py::arg("sums"), py::arg("total"),
      py::arg("ignore_index"), py::arg("label_smoothing"), py::arg("reduction"), Nogil());
  m.def("bce_with_logits", &ops::bce_with_logits, py::arg("logits"), py::arg("targets"), py::arg("weight"),
        py::arg("pos_weight"), py::arg("reduction"), Nogil());
  m.def("bce_with_logits_backward", &ops::bce_with_logits_backward, py::arg("dloss"), py::arg("logits"),
        py::arg("targets"), py::arg("weight"), py::arg("pos_weight"), py::arg("reduction"), py::arg("want_dtargets"),
        Nogil());
  m.def(
      "ctc_loss",
      [](const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& input_lengths,
         const std::optional<Tensor>& target_lengths, std::int64_t blank, const std::string& reduction,
         bool zero_infinity, bool want_gradient) {
        return ops::ctc_loss(logits, targets, input_lengths, target_lengths,
                             {blank, reduction, zero_infinity, want_gradient});
      },
      py::arg("logits"), py::arg("targets"), py::arg("input_lengths"), py::arg("target_lengths"), py::arg("blank"),
      py::arg("reduction"), py::arg("zero_infinity"), py::arg("want_gradient"), Nogil());
  m.def("ctc_loss_backward", &ops::ctc_loss_backward, py::arg("dloss"), py::arg("gradient"), py::arg("like"), Nogil());
  m.def("mse", &ops::mse, py::arg("a"), py::arg("b"), py::arg("reduction"), Nogil());
  m.def("mse_backward", &ops::mse_backward, py::arg("dloss"), py::arg("a"), py::arg("b"), py::arg("reduction"),
        py::arg("want_da"), py::arg("want_db"), Nogil());
}

}  // namespace drupe::bindings
