// How a loss turns its elements into its result.
#pragma once

#include <cstdint>
#include <string>

#include "core/check.h"

namespace drupe {

enum class Reduction : std::uint8_t { none, mean, sum };

inline Reduction parse_reduction(const std::string& name, const char* op) {
  if (name == "none") return Reduction::none;
  if (name == "mean") return Reduction::mean;
  if (name == "sum") return Reduction::sum;
  fail(op, "reduction is \"", name, "\": expected mean, sum or none");
}

}  // namespace drupe
