// The measured limits of the machine.
#include "ops/limits.h"

#include "bindings/bindings.h"
#include "bindings/casters.h"

namespace drupe::bindings {

void bind_limits(py::module_& m) {
  m.def("measure_limit", &ops::measure_limit, py::arg("name"), py::arg("bytes") = 0, py::arg("seconds") = 0.1,
        py::arg("device") = Device{}, Nogil());
}

}  // namespace drupe::bindings
