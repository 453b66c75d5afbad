// What launchers choose from the sizes alone: tiles, splits, shares. Each choice must cover its problem, stay within
// what kernels assume, and be the one that was measured or argued for.
#include "cuda/channel_norm.h"
#include "cuda/conv2d/tiles.h"
#include "cuda/selftest.h"
#include "cuda/tile/grid.cuh"
#include "cuda/tile/map.cuh"
#include "cuda/tile/row_groups.cuh"
#include "cuda/tile/segments.cuh"
#include "cuda/tile/shares.cuh"

namespace drupe::selftest {
namespace {

using namespace drupe::cuda;

// Around the edges of everything: 0 or 1, tiles, and what 32 bits do not count.
constexpr std::int64_t kSizes[] = {1,   2,   7,    31,   32,   33,    63,      64,      65,           127,
                                   128, 129, 1000, 1023, 4096, 50257, 1 << 20, 1 << 24, 3000000000LL, 1LL << 40};

const Register kConvolution("choice.conv2d", [] {
  for (const std::int64_t size : kSizes) {
    for (const std::int64_t slice : {16, 32, 64}) {
      for (const std::int64_t blocks : {1, 5, 132, 4000}) {
        const conv::Stretches cut = conv::choose_stretches(size, 132, blocks, slice, 8);
        require(cut.size % slice == 0, "a stretch of ", cut.size, " is not whole slices of ", slice);
        require(cut.size * cut.count >= size && cut.size * (cut.count - 1) < size, cut.count, " stretches of ",
                cut.size, " for ", size);
        require(cut.count == 1 || cut.size >= 8 * slice, "a stretch of ", cut.size, " slices");
        require(cut.size <= (std::int64_t{1} << 30) + slice, "a stretch that 32 bits do not count");
      }
    }
  }
  require(conv::choose_stretches(4096, 132, 132, 32, 8).count == 1, "a full device: nothing is cut");
  require(conv::choose_stretches(0, 132, 1, 32, 8).count == 1, "an empty sum is one stretch");
  require(conv::choose_block(6272, 64, 1, 1, 132) == conv::kSmallBlock, "64 columns would waste half a large block");
  require(conv::choose_block(6272, 256, 1, 1, 132) == conv::kSmallBlock, "98 large blocks leave multiprocessors idle");
  require(conv::choose_block(25088, 128, 1, 1, 132) == conv::kLargeBlock, "196 large blocks");
  require(conv::choose_block(6272, 128, 1, 4, 132) == conv::kLargeBlock, "four products in one launch");
  require(conv::choose_block(6272, 128, 4, 1, 132) == conv::kLargeBlock, "four groups");
});

const Register kChannels("choice.channel_norm", [] {
  for (const std::int64_t rows : kSizes) {
    for (const std::int64_t C : {1, 3, 8, 24, 64, 256, 2048}) {
      for (const int pack : {1, 8}) {
        if (C % pack != 0) continue;
        for (const std::int64_t least : {kRowsInFlight, 4 * kRowsInFlight}) {
          const ChannelTiling tiling = choose_channel_tiling(2, rows, C, pack, least);
          require(kChannelThreads % tiling.across == 0, tiling.across, " threads along the channels");
          require(tiling.columns * tiling.across * pack >= C, "channels without a thread");
          require(tiling.chunks * tiling.chunk_rows >= rows && (tiling.chunks - 1) * tiling.chunk_rows < rows,
                  tiling.chunks, " chunks of ", tiling.chunk_rows, " rows for ", rows);
          require(tiling.chunk_rows % (kChannelThreads / tiling.across) == 0, "a chunk that is not whole steps");
          require(tiling.chunk_size(tiling.chunks - 1) == rows - (tiling.chunks - 1) * tiling.chunk_rows, "the rest");
        }
      }
    }
  }
});

const Register kRows("choice.rows", [] {
  for (const std::int64_t size : kSizes) {
    const int lanes = choose_row_lanes(size, 256);
    require(lanes == 256 || (lanes <= kWarp && 256 % lanes == 0), lanes, " lanes");
    require((lanes == 256) == (size > 8 * kWarp), "a block for rows of more than 8 items a lane");
    const RowShare share = choose_row_share(size, 8, 32, 256);
    require(share.lanes == 256 || (share.lanes <= kWarp && 256 % share.lanes == 0), share.lanes, " lanes");
    require(share.kept == 0 ? size > 32 * 256 : size <= share.kept * share.lanes, "a row of ", size, " by ",
            share.lanes, " lanes of ", share.kept);
    require(share.lanes == 1 || share.kept != 8 || size > 8 * share.lanes / 2, "half of the lanes would do");
  }
  require(choose_row_share(768, 8, 32, 256).lanes == 32, "a row of BERT's is a warp's");
  require(choose_row_share(0, 8, 32, 256).lanes == 1, "an empty row");
});

const Register kColumns("choice.columns", [] {
  for (const std::int64_t packs : kSizes) {
    for (const std::int64_t rows : kSizes) {
      const int parts = choose_column_parts(packs, rows, 256);
      require(256 % parts == 0 && parts <= 256, parts, " parts");
      require(parts == 1 || parts * 4 <= rows, parts, " parts of ", rows, " rows");
      require(256 / parts >= std::min<std::int64_t>(packs, kWarp), "fewer lanes than ", packs, " packs want");
    }
  }
});

const Register kLengths("choice.lengths", [] {
  for (const std::int64_t size : kSizes) {
    for (const std::int64_t count : {1, 3, 1023, 1024, 100000}) {
      if (size > std::int64_t{1} << 40 / count) continue;
      const std::int64_t length = choose_length(size, count, 8, 128);
      require(length >= 8 && length <= 128, "a length of ", length);
      const std::int64_t whole = choose_length(size, count, 8, size);
      require(count < kManyBlocks || whole >= size, "enough of them: none is cut");
    }
  }
  require(choose_length(1 << 20, 1, 8, 1 << 20) == 1024, "one thing makes many blocks");
});

const Register kTasks("choice.tasks", [] {
  for (const std::int64_t entries : kSizes) {
    for (const std::int64_t row_bytes : {2, 16, 64, 512, 4096}) {
      for (const int fewest : {2, 4}) {
        const int log_task = choose_log_task(entries, row_bytes, fewest);
        require(log_task >= fewest, "tasks of ", 1 << log_task);
        require(log_task == fewest || (entries >> log_task) * std::max<std::int64_t>(1, row_bytes / 16) >= 1 << 18,
                "a device that longer tasks do not fill");
      }
    }
  }
  require(choose_log_task(1 << 20, 64, 4) == 4 && choose_log_task(1 << 24, 64, 4) == 8, "the tasks of a large batch");
});

const Register kGrids("choice.grids", [] {
  for (const std::int64_t items : kSizes) {
    const std::int64_t blocks = blocks_for(items, 4);
    require(blocks >= 1 && blocks <= 0x7fffffff, blocks, " blocks");
    require(blocks == 0x7fffffff || (blocks * 1024 >= items && (blocks - 1) * 1024 < items), "blocks for ", items);
    const Dim3 grid = grid_of(items);
    if (items > std::int64_t{1} << 44) continue;
    require(std::int64_t{grid.x} * grid.y >= items && grid.x <= 0x7fffffffu && grid.y <= 65535, "a grid of ", grid.x,
            " by ", grid.y);
    const RowGroups groups(5, items);
    require(groups.pieces << groups.log_lanes >= items && groups.log_lanes <= 5, "pieces of a row of ", items);
  }
  require(blocks_for(0) == 1, "no items: one block, which finds none");
});

}  // namespace
}  // namespace drupe::selftest
