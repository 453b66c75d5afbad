// Bags that come list after list, lists of equal length, and results that lie the other way: those of the lists' first
// bags, then those of their second ones.
#pragma once

#include "core/quotient.h"

namespace drupe {

struct BagOrder {
  std::int64_t bags;
  std::int64_t lists = 1;

  // Where the result of a bag lies, ...
  constexpr std::int64_t place(std::int64_t bag) const {
    if (lists == 1) return bag;
    const std::int64_t length = quotient(bags, lists), list = quotient(bag, length);
    return (bag - list * length) * lists + list;
  }
  // ... and that of the bag after the one whose result lies at `place`.
  constexpr std::int64_t next(std::int64_t place) const {
    place += lists;
    return place < bags ? place : place - bags + 1;
  }
};

}  // namespace drupe
