// Finds the first index that is out of range; the result does not depend on the order of the threads. In a graph one
// thread reports it to the device's record, which keeps the first report; kernels that come after read a copy of the
// indices without it. Bytes: the indices, and their copy.
#include "ops/index_range.h"

#include "core/dispatch.h"
#include "cuda/tile/map.cuh"

namespace drupe::cuda {
namespace {

struct Range {
  std::int64_t size, allowed;
  bool allows;

  __device__ __forceinline__ bool contains(std::int64_t index) const {
    return (index >= 0 && index < size) || (allows && index == allowed);
  }
};

template <class I>
__global__ __launch_bounds__(kMapThreads) void find_out_of_range_kernel(Range range, std::int64_t count,
                                                                        const I* indices,
                                                                        unsigned long long* remaining) {
  for (std::int64_t i = global_thread(); i < count; i += global_threads()) {
    if (range.contains(indices[i])) continue;
    atomicMax(remaining, static_cast<unsigned long long>(count - i));
    return;  // this thread's later ones come after it
  }
}

template <class I>
__global__ __launch_bounds__(kMapThreads) void copy_in_range_kernel(Range range, std::int64_t count, const I* indices,
                                                                    I* copy, unsigned long long* remaining) {
  bool reported = false;
  for (std::int64_t i = global_thread(); i < count; i += global_threads()) {
    const I index = indices[i];
    const bool fits = range.contains(static_cast<std::int64_t>(index));
    copy[i] = fits ? index : I(0);
    if (fits || reported) continue;
    atomicMax(remaining, static_cast<unsigned long long>(count - i));
    reported = true;  // this thread's later ones come after it
  }
}

template <class I>
__global__ __launch_bounds__(32) void report_out_of_range_kernel(const I* indices, std::int64_t count,
                                                                 const unsigned long long* remaining,
                                                                 ErrorRecord* record, std::int64_t check) {
  if (threadIdx.x > 0 || *remaining == 0) return;
  if (atomicCAS(&record->state, 0ull, 1ull) != 0) return;
  record->check = check;
  record->position = count - static_cast<std::int64_t>(*remaining);
  record->index = static_cast<std::int64_t>(indices[record->position]);
  __threadfence();
  atomicExch(&record->state, 2ull);
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

void report_out_of_range(const IndexRangeArgs& args, void* copy, const DeferredCheck& check, Stream stream) {
  const Range range{args.size, args.allowed.value_or(0), args.allowed.has_value()};
  auto* remaining = reinterpret_cast<unsigned long long*>(args.remaining);
  dispatch_index(args.dtype, [&]<class I>() {
    launch<copy_in_range_kernel<I>>({.grid = {blocks_for(args.count, 8)}, .block = {kMapThreads}}, stream, range,
                                    args.count, static_cast<const I*>(args.indices), static_cast<I*>(copy), remaining);
  });
  report_remaining(args, check, stream);
}

void report_remaining(const IndexRangeArgs& args, const DeferredCheck& check, Stream stream) {
  dispatch_index(args.dtype, [&]<class I>() {
    launch<report_out_of_range_kernel<I>>({.grid = {1}, .block = {32}}, stream, static_cast<const I*>(args.indices),
                                          args.count, reinterpret_cast<const unsigned long long*>(args.remaining),
                                          check.record, check.id);
  });
}

}  // namespace drupe::cuda
