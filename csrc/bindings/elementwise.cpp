#include "bindings/bindings.h"
#include "bindings/casters.h"

namespace drupe::bindings {

void bind_elementwise(py::module_&) {}

}  // namespace drupe::bindings
