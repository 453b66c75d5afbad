// The processor's caches, for kernels whose blocks are to stay in them. Sizes taken from here differ from machine to
// machine: they may decide who computes what and where it lies meanwhile, never the order of a sum.
#pragma once

#include <cstdint>

namespace drupe {

struct Caches {
  std::int64_t l2, l3;  // bytes; of L3 not more than a few cores' share
};
const Caches& caches();

}  // namespace drupe
