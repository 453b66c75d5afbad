// Writes each element once, a cache line at a time.
#include "ops/fill.h"

#include <cstring>

#include "core/parallel.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrain = 262144;  // bytes a task
constexpr std::int64_t kLine = 64;       // bytes, a multiple of every element's size

}  // namespace

template <Isa I>
void fill(const FillArgs& args) {
  unsigned char line[kLine];
  for (std::int64_t i = 0; i < kLine; ++i) line[i] = args.element[i % args.element_bytes];
  parallel_ranges(args.bytes, kGrain, [&](std::int64_t begin, std::int64_t end) {
    auto* y = static_cast<unsigned char*>(args.y);
    std::int64_t i = begin;
    for (; i + kLine <= end; i += kLine) std::memcpy(y + i, line, kLine);
    if (i < end) std::memcpy(y + i, line, static_cast<std::size_t>(end - i));
  });
}

template void fill<Isa::DRUPE_ISA>(const FillArgs&);

}  // namespace drupe::cpu
