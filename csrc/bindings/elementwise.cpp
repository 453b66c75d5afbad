// Pointwise operations, reductions, and tensors of one value.
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/binary.h"
#include "ops/fill.h"
#include "ops/reduce.h"

namespace drupe::bindings {

void bind_elementwise(py::module_& m) {
  m.def("full", &ops::full, py::arg("shape"), py::arg("value"), py::arg("dtype"), Nogil());
  m.def("scalar", &ops::scalar, py::arg("op"), py::arg("value"), py::arg("dtype"), Nogil());

  m.def("binary", &ops::binary, py::arg("name"), py::arg("a"), py::arg("b"), Nogil());
  m.def("where", &ops::where, py::arg("condition"), py::arg("a"), py::arg("b"), Nogil());

  m.def("reduce", &ops::reduce, py::arg("name"), py::arg("x"), py::arg("axes"), py::arg("keepdims"), Nogil());
  m.def("var", &ops::var, py::arg("x"), py::arg("axes"), py::arg("ddof"), py::arg("keepdims"), Nogil());
}

}  // namespace drupe::bindings
