// Strided copy with conversion, in the destination's order, 16 bytes at a time along rows that allow it; where source
// and destination are contiguous along different dimensions, by tiles that turn in shared memory. Bytes: each element
// read once and written once.
#include "ops/copy.h"

#include <limits>
#include <type_traits>

#include "core/dispatch.h"
#include "cuda/tile/broadcast.cuh"

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
void convert_elements(const CopyArgs& args, const Loops& loops, Stream stream) {
  broadcast(stream, Convert<To, From>{}, loops, static_cast<To*>(args.dst), static_cast<const From*>(args.src));
}

constexpr int kTile = 32;  // elements along each side
constexpr int kTileRows = kMapThreads / kTile;

// Two dimensions, along one of which each side is contiguous, and the others, over which they are repeated.
struct Transpose {
  Strided<2> others;
  std::int64_t rows, columns;         // src is contiguous along the rows' dimension, dst along the columns'
  std::int64_t row_tiles, tiles;      // of one matrix; of all
  std::int64_t dst_pitch, src_pitch;  // from row to row in dst, from column to column in src
};

template <class Word>
struct TransposeStorage {
  Word tile[kTile][kTile + 1];  // [column][row]
};

// A block moves a tile through shared memory, so that loads and stores are both along memory.
template <class Word>
__global__ __launch_bounds__(kMapThreads) void transpose_kernel(Transpose t, Word* dst, const Word* src) {
  auto& storage = shared_storage<TransposeStorage<Word>>();
  const int lane = static_cast<int>(threadIdx.x) % kTile, first = static_cast<int>(threadIdx.x) / kTile;
  const std::int64_t column_tiles = (t.columns + kTile - 1) / kTile;
  for (std::int64_t tile = blockIdx.x; tile < t.tiles; tile += gridDim.x) {
    const std::int64_t across = tile / t.row_tiles, matrix = across / column_tiles;
    const std::int64_t row = (tile - across * t.row_tiles) * kTile, column = (across - matrix * column_tiles) * kTile;
    const Offsets<2> offset = locate(t.others, matrix);
    const Word* from = src + offset.at[1] + column * t.src_pitch + row;
    Word* to = dst + offset.at[0] + row * t.dst_pitch + column;
#pragma unroll
    for (int c = first; c < kTile; c += kTileRows) {
      if (column + c < t.columns && row + lane < t.rows) storage.tile[c][lane] = from[c * t.src_pitch + lane];
    }
    __syncthreads();
#pragma unroll
    for (int r = first; r < kTile; r += kTileRows) {
      if (row + r < t.rows && column + lane < t.columns) to[r * t.dst_pitch + lane] = storage.tile[lane][r];
    }
    __syncthreads();
  }
}

// Whether the operands (dst, src) are each contiguous along a dimension of their own that is worth a tile.
bool as_transpose(const Loops& loops, Transpose& t) {
  const int inner = loops.shape.size() - 1;
  const Dims &dst = loops.strides[0], &src = loops.strides[1];
  int along = 0;
  while (along < inner && src[along] != 1) ++along;
  constexpr std::int64_t kWorth = kTile / 2;
  if (along >= inner || dst[inner] != 1 || loops.shape[inner] < kWorth || loops.shape[along] < kWorth) return false;
  Loops others;
  for (int d = 0; d < inner; ++d) {
    if (d == along) continue;
    others.shape.push_back(loops.shape[d]);
    others.strides[0].push_back(dst[d]);
    others.strides[1].push_back(src[d]);
  }
  t = {.others = Strided<2>(others),
       .rows = loops.shape[along],
       .columns = loops.shape[inner],
       .row_tiles = (loops.shape[along] + kTile - 1) / kTile,
       .tiles = 0,
       .dst_pitch = dst[along],
       .src_pitch = src[inner]};
  t.tiles = t.others.size * t.row_tiles * ((t.columns + kTile - 1) / kTile);
  return true;
}

template <class Word>
void move_words(const CopyArgs& args, const Loops& loops, Stream stream) {
  Transpose t;
  if (!as_transpose(loops, t)) return convert_elements<Word, Word>(args, loops, stream);
  launch<transpose_kernel<Word>>(
      {.grid = {blocks_for(t.tiles, 1, 1)}, .block = {kMapThreads}, .shared_bytes = sizeof(TransposeStorage<Word>)},
      stream, t, static_cast<Word*>(args.dst), static_cast<const Word*>(args.src));
}

}  // namespace

void copy(const CopyArgs& args, Stream stream) {
  const Loops loops{.shape = args.shape, .strides = {args.dst_strides, args.src_strides}};
  if (args.src_dtype == args.dst_dtype) {
    switch (size_of(args.src_dtype)) {
      case 1:
        return move_words<std::uint8_t>(args, loops, stream);
      case 2:
        return move_words<std::uint16_t>(args, loops, stream);
      case 4:
        return move_words<std::uint32_t>(args, loops, stream);
      default:
        return move_words<std::uint64_t>(args, loops, stream);
    }
  }
  dispatch_any(args.src_dtype, [&]<class From>() {
    dispatch_any(args.dst_dtype, [&]<class To>() {
      if constexpr (!std::is_same_v<To, From>) convert_elements<To, From>(args, loops, stream);
    });
  });
}

}  // namespace drupe::cuda
