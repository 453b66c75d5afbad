#include "core/caches.h"

#include <unistd.h>

#include <algorithm>

namespace drupe {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr Caches kTypical{kMiB, 32 * kMiB};

// What the system says, or `typical` where it says nothing.
std::int64_t cache_size([[maybe_unused]] int level, std::int64_t typical) {
  long found = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  found = sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
#endif
  return found > 0 ? found : typical;
}

}  // namespace

const Caches& caches() {
  static const Caches found{cache_size(2, kTypical.l2), std::min(cache_size(3, kTypical.l3), kTypical.l3)};
  return found;
}

}  // namespace drupe
