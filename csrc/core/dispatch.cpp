#include "core/dispatch.h"

#include <stdexcept>
#include <string>

namespace drupe {

void unexpected_dtype(Dtype dtype) {
  throw std::logic_error(std::string("a kernel was given ") + name_of(dtype) + ", which it does not have");
}

}  // namespace drupe
