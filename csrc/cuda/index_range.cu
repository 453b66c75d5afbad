// Finds the first index that is out of range; the result does not depend on the order of the threads. Bytes: the
// indices.
#include "ops/index_range.h"

#include "core/dispatch.h"
#include "cuda/tile/map.cuh"

namespace drupe::cuda {
namespace {

struct Range {
  std::int64_t size, allowed;
  bool allows;
};

template <class I>
__global__ __launch_bounds__(kMapThreads) void find_out_of_range_kernel(Range range, std::int64_t count,
                                                                        const I* indices,
                                                                        unsigned long long* remaining) {
  for (std::int64_t i = global_thread(); i < count; i += global_threads()) {
    const std::int64_t index = indices[i];
    if ((index >= 0 && index < range.size) || (range.allows && index == range.allowed)) continue;
    atomicMax(remaining, static_cast<unsigned long long>(count - i));
    return;  // this thread's later ones come after it
  }
}

}  // namespace

void find_out_of_range(const IndexRangeArgs& args, Stream stream) {
  const Range range{args.size, args.allowed.value_or(0), args.allowed.has_value()};
  dispatch_index(args.dtype, [&]<class I>() {
    launch<find_out_of_range_kernel<I>>({.grid = {blocks_for(args.count, 8)}, .block = {kMapThreads}}, stream, range,
                                        args.count, static_cast<const I*>(args.indices),
                                        reinterpret_cast<unsigned long long*>(args.remaining));
  });
}

}  // namespace drupe::cuda
