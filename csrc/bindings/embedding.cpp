#include "bindings/bindings.h"
#include "bindings/casters.h"

namespace drupe::bindings {

void bind_embedding(py::module_&) {}

}  // namespace drupe::bindings
