// The normalisations, and dropout.
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/batch_norm.h"
#include "ops/dropout.h"
#include "ops/group_norm.h"
#include "ops/row_norm.h"

namespace drupe::bindings {

void bind_norm(py::module_& m) {
  m.def("layer_norm", &ops::layer_norm, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("residual"),
        py::arg("eps"), py::arg("ndim"), Nogil());
  m.def("layer_norm_backward", &ops::layer_norm_backward, py::arg("dy"), py::arg("x"), py::arg("weight"),
        py::arg("bias"), py::arg("residual"), py::arg("mean"), py::arg("rstd"), py::arg("ndim"), Nogil());
  m.def("rms_norm", &ops::rms_norm, py::arg("x"), py::arg("weight"), py::arg("residual"), py::arg("eps"),
        py::arg("ndim"), Nogil());
  m.def("rms_norm_backward", &ops::rms_norm_backward, py::arg("dy"), py::arg("x"), py::arg("weight"),
        py::arg("residual"), py::arg("rstd"), py::arg("ndim"), Nogil());
  m.def(
      "batch_norm",
      [](const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
         const std::optional<Tensor>& running_mean, const std::optional<Tensor>& running_var, bool training,
         double momentum, double eps, const std::string& layout) {
        return ops::batch_norm(x, weight, bias, running_mean, running_var,
                               {.training = training, .momentum = momentum, .eps = eps, .layout = layout});
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("running_mean"), py::arg("running_var"),
      py::arg("training"), py::arg("momentum"), py::arg("eps"), py::arg("layout"), Nogil());
  m.def("batch_norm_backward", &ops::batch_norm_backward, py::arg("dy"), py::arg("x"), py::arg("weight"),
        py::arg("bias"), py::arg("mean"), py::arg("rstd"), py::arg("training"), py::arg("layout"), Nogil());
  m.def("group_norm", &ops::group_norm, py::arg("x"), py::arg("groups"), py::arg("weight"), py::arg("bias"),
        py::arg("eps"), py::arg("layout"), Nogil());
  m.def("group_norm_backward", &ops::group_norm_backward, py::arg("dy"), py::arg("x"), py::arg("weight"),
        py::arg("bias"), py::arg("mean"), py::arg("rstd"), py::arg("layout"), Nogil());
  m.def("dropout", &ops::dropout, py::arg("x"), py::arg("p"), py::arg("seed"), py::arg("offset"), py::arg("state"),
        py::arg("keep"), Nogil());
  m.def("dropout_backward", &ops::dropout_backward, py::arg("dy"), py::arg("mask"), py::arg("p"), py::arg("seed"),
        py::arg("offset"), py::arg("state"), Nogil());
}

}  // namespace drupe::bindings
