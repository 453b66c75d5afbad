// One value everywhere. Bytes: the tensor, once.
#include "ops/fill.h"

#include <cstring>

#include "cuda/tile/map.cuh"

namespace drupe::cuda {
namespace {

template <class Word>
struct Constant {
  Word value;
  __device__ __forceinline__ Word operator()() const { return value; }
};

template <class Word>
void fill_words(const FillArgs& args, Stream stream) {
  Word value;
  std::memcpy(&value, args.element, sizeof value);
  map(stream, Constant<Word>{value}, args.bytes / static_cast<std::int64_t>(sizeof value), static_cast<Word*>(args.y));
}

}  // namespace

void fill(const FillArgs& args, Stream stream) {
  switch (args.element_bytes) {
    case 1:
      return fill_words<std::uint8_t>(args, stream);
    case 2:
      return fill_words<std::uint16_t>(args, stream);
    case 4:
      return fill_words<std::uint32_t>(args, stream);
    default:
      return fill_words<std::uint64_t>(args, stream);
  }
}

}  // namespace drupe::cuda
