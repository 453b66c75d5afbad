#include "bindings/bindings.h"
#include "bindings/casters.h"

namespace drupe::bindings {

void bind_norm(py::module_&) {}

}  // namespace drupe::bindings
