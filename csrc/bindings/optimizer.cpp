// Optimizer steps over lists of tensors, in place.
#include "ops/optimizer.h"
#include "bindings/bindings.h"
#include "bindings/casters.h"

namespace drupe::bindings {

using ops::Optionals;
using ops::Tensors;

using Scalar = std::optional<Tensor>;

void bind_optimizer(py::module_& m) {
  py::class_<ops::StepInputs>(m, "StepInputs")
      .def(py::init([](const Tensors& params, const Tensors& grads, const Optionals& rows, const Optionals& masters,
                       const Optionals& scales, bool stochastic_rounding, std::uint64_t seed, std::uint64_t offset,
                       const Scalar& device_lr, const Scalar& device_scale, const Tensors& steps) {
             return ops::StepInputs{params,
                                    grads,
                                    rows,
                                    masters,
                                    scales,
                                    {stochastic_rounding, seed, offset},
                                    {device_lr, device_scale, steps}};
           }),
           py::arg("params"), py::arg("grads"), py::arg("rows"), py::arg("masters"), py::arg("scales"), py::kw_only(),
           py::arg("stochastic_rounding"), py::arg("seed"), py::arg("offset"), py::arg("device_lr") = py::none(),
           py::arg("device_scale") = py::none(), py::arg("steps") = Tensors());
  m.def(
      "sgd",
      [](const ops::StepInputs& inputs, const Tensors& buffers, double lr, double momentum, bool nesterov,
         double weight_decay, double l1, double grad_scale) {
        ops::sgd(inputs, buffers,
                 {.list = {},
                  .lr = lr,
                  .momentum = momentum,
                  .weight_decay = weight_decay,
                  .l1 = l1,
                  .grad_scale = grad_scale,
                  .nesterov = nesterov});
      },
      py::arg("inputs"), py::arg("buffers"), py::kw_only(), py::arg("lr"), py::arg("momentum"), py::arg("nesterov"),
      py::arg("weight_decay"), py::arg("l1"), py::arg("grad_scale"), Nogil());
  m.def(
      "adam",
      [](const ops::StepInputs& inputs, const Tensors& exp_avgs, const Tensors& exp_avg_sqs, double lr, double beta1,
         double beta2, double eps, double weight_decay, double l1, double grad_scale, std::int64_t step,
         bool decoupled) {
        ops::adam(inputs, exp_avgs, exp_avg_sqs,
                  {.list = {},
                   .lr = lr,
                   .beta1 = beta1,
                   .beta2 = beta2,
                   .eps = eps,
                   .weight_decay = weight_decay,
                   .l1 = l1,
                   .grad_scale = grad_scale,
                   .step = step,
                   .decoupled = decoupled});
      },
      py::arg("inputs"), py::arg("exp_avgs"), py::arg("exp_avg_sqs"), py::kw_only(), py::arg("lr"), py::arg("beta1"),
      py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("l1"), py::arg("grad_scale"), py::arg("step"),
      py::arg("decoupled"), Nogil());
  m.def(
      "rmsprop",
      [](const ops::StepInputs& inputs, const Tensors& square_avgs, const Tensors& grad_avgs, const Tensors& buffers,
         double lr, double alpha, double eps, double momentum, bool centered, double weight_decay, double l1,
         double grad_scale) {
        ops::rmsprop(inputs, square_avgs, grad_avgs, buffers,
                     {.list = {},
                      .lr = lr,
                      .alpha = alpha,
                      .eps = eps,
                      .momentum = momentum,
                      .weight_decay = weight_decay,
                      .l1 = l1,
                      .grad_scale = grad_scale,
                      .centered = centered});
      },
      py::arg("inputs"), py::arg("square_avgs"), py::arg("grad_avgs"), py::arg("buffers"), py::kw_only(), py::arg("lr"),
      py::arg("alpha"), py::arg("eps"), py::arg("momentum"), py::arg("centered"), py::arg("weight_decay"),
      py::arg("l1"), py::arg("grad_scale"), Nogil());
  m.def("clip_factor", &ops::clip_factor, py::arg("tensors"), py::arg("max_norm"), Nogil());
  m.def("sum_of_squares", &ops::sum_of_squares, py::arg("tensors"), Nogil());
}

}  // namespace drupe::bindings
