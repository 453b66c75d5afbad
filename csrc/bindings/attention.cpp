#include "bindings/bindings.h"
#include "bindings/casters.h"

namespace drupe::bindings {

void bind_attention(py::module_&) {}

}  // namespace drupe::bindings
