// Attention and softmax.
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/softmax.h"

namespace drupe::bindings {

void bind_attention(py::module_& m) {
  m.def("softmax", &ops::softmax, py::arg("x"), py::arg("axis"), py::arg("log") = false, Nogil());
  m.def("softmax_backward", &ops::softmax_backward, py::arg("dy"), py::arg("y"), py::arg("axis"),
        py::arg("log") = false, Nogil());
}

}  // namespace drupe::bindings
