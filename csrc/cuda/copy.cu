// Strided copy with conversion, one thread an element of the destination in its own order; flat operands of one dtype
// move 16 bytes at a time. Bytes: each element read once and written once.
#include "ops/copy.h"

#include <limits>
#include <type_traits>

#include "core/dispatch.h"
#include "cuda/tile/map.cuh"
#include "cuda/tile/strided.cuh"

namespace drupe::cuda {
namespace {

// Float to integer truncates towards zero and saturates, NaN gives 0; to bool is != 0.
template <class To, class From>
struct Convert {
  __device__ __forceinline__ To operator()(From value) const {
    using A = Accumulator<From>;
    if constexpr (std::is_same_v<To, From>) {
      return value;
    } else if constexpr (std::is_same_v<To, bool>) {
      return widen(value) != A(0);
    } else if constexpr (std::is_floating_point_v<A> && std::is_integral_v<To>) {
      // Both bounds are exact: the lower is a power of two, and one past the upper is too.
      constexpr A kLow = static_cast<A>(std::numeric_limits<To>::min());
      constexpr A kPastHigh = static_cast<A>(2) * static_cast<A>(std::numeric_limits<To>::max() / 2 + 1);
      const A x = widen(value);
      if (x != x) return To(0);
      if (x < kLow) return std::numeric_limits<To>::min();
      if (x >= kPastHigh) return std::numeric_limits<To>::max();
      return static_cast<To>(x);
    } else {
      return narrow<To>(static_cast<Accumulator<To>>(widen(value)));
    }
  }
};

template <class To, class From>
__global__ __launch_bounds__(kMapThreads) void copy_kernel(Strided<2> nest, To* dst, const From* src) {
  const Convert<To, From> convert;
  for (std::int64_t i = global_thread(); i < nest.size; i += global_threads()) {
    const Offsets<2> offset = locate(nest, i);
    dst[offset.at[0]] = convert(src[offset.at[1]]);
  }
}

template <class To, class From>
void copy_elements(const CopyArgs& args, Stream stream) {
  auto* dst = static_cast<To*>(args.dst);
  const auto* src = static_cast<const From*>(args.src);
  const Strided<2> nest(Loops{.shape = args.shape, .strides = {args.dst_strides, args.src_strides}});
  if (nest.is_flat()) {
    map(stream, Convert<To, From>{}, nest.size, dst, src);
  } else {
    launch<copy_kernel<To, From>>({.grid = {blocks_for(nest.size)}, .block = {kMapThreads}}, stream, nest, dst, src);
  }
}

}  // namespace

void copy(const CopyArgs& args, Stream stream) {
  if (args.src_dtype == args.dst_dtype) {
    switch (size_of(args.src_dtype)) {
      case 1:
        return copy_elements<std::uint8_t, std::uint8_t>(args, stream);
      case 2:
        return copy_elements<std::uint16_t, std::uint16_t>(args, stream);
      case 4:
        return copy_elements<std::uint32_t, std::uint32_t>(args, stream);
      default:
        return copy_elements<std::uint64_t, std::uint64_t>(args, stream);
    }
  }
  dispatch_any(args.src_dtype, [&]<class From>() {
    dispatch_any(args.dst_dtype, [&]<class To>() {
      if constexpr (!std::is_same_v<To, From>) copy_elements<To, From>(args, stream);
    });
  });
}

}  // namespace drupe::cuda
