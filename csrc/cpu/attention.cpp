// attention, forward. K^T and V of a key/value head are packed once, as the right operands of the register-blocked
// product; with many heads by the task that uses them (they stay in its L2), with few by tasks of their own. A task
// owns a block of query rows (of all query heads that share the key/value head, one after another). It walks the keys
// in blocks of kDepth; per tile of kRows rows: logits = Q K^T into an L1 buffer, e^(logit - max) in place, and that
// buffer is the left operand of P V. Running maxima and sums rescale what earlier blocks gave; where one block holds
// all keys, P V is scaled and written to y at once. The products fetch y and the next head meanwhile (Ahead).
// bfloat16's dot instruction takes pairs: of D in Q and K^T, which are copied, of keys in P, rounded, and V.
// Bytes: q, k, v read once, y and lse written once. Worklog: bench/worklog/attention.md.
#include "cpu/attention.h"

#include "core/dispatch.h"
#include "cpu/attention_decode.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kManyHeads = 32;
constexpr std::int64_t kPackKeys = 512;  // keys that a packing task takes, where heads are few

// P multiplies elements of T, which hold kItems neighbours of S along the depth.
template <class S, Isa I, class P>
class Forward {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Tile = AttentionTile<I, T>;
  static constexpr std::int64_t kBlockRows = 140 / Tile::kRows * Tile::kRows;
  static constexpr T kLowest = -std::numeric_limits<T>::infinity();
  static constexpr bool kPaired = kMultipliesPairs<P>;
  static constexpr std::int64_t kItems = kPaired ? 2 : 1;

  enum class Held { nothing, sums, output };  // what is there of a tile's rows

  // A key/value head as right operands: K^T in panels of kCols keys, rows of V.
  struct Packed {
    const T* keys;
    const T* values;
    std::int64_t value_row;
  };

 public:
  explicit Forward(const AttentionArgs& args) : args_(args) {}

  void run() const {
    const std::int64_t heads = args_.B * args_.Hkv;
    const std::int64_t rows = args_.Hq / args_.Hkv * args_.Sq;
    const std::int64_t blocks = ceil_div(rows, kBlockRows);
    const std::int64_t block = ceil_div(rows, blocks);
    if (heads >= kManyHeads) {
      parallel_for(heads, [&](std::int64_t head) {
        const Scratch<T> memory(static_cast<std::size_t>(packed_size()));
        pack(head, 0, args_.Skv, memory.data());
        for (std::int64_t row = 0; row < rows; row += block) {
          Ahead<I> ahead;
          expect(ahead, head, row, block, rows, head + 1 < heads);
          attend(head, row, std::min(block, rows - row), packed(head, memory.data()), ahead);
        }
      });
      return;
    }
    const Scratch<T> memory(static_cast<std::size_t>(heads * packed_size()));
    const std::int64_t chunks = ceil_div(args_.Skv, kPackKeys);
    parallel_for(heads * chunks, [&](std::int64_t task) {
      const std::int64_t head = task / chunks, begin = task % chunks * kPackKeys;
      pack(head, begin, std::min(args_.Skv, begin + kPackKeys), memory.data() + head * packed_size());
    });
    parallel_for(heads * blocks, [&](std::int64_t task) {
      const std::int64_t head = task / blocks, row = task % blocks * block;
      if (row >= rows) return;
      Ahead<I> ahead;
      expect(ahead, head, row, block, rows, false);
      attend(head, row, std::min(block, rows - row), packed(head, memory.data() + head * packed_size()), ahead);
    });
  }

 private:
  // Rows that fill whole panels: V is read where it lies, and a tile of y is written there if one block holds all keys
  // and its rows are those of one head.
  bool values_in_place() const { return std::is_same_v<S, T> && args_.Dv % Tile::kCols == 0; }
  bool outputs_in_place(const Row<S>* rows, int count) const {
    return values_in_place() && args_.Skv <= Tile::kDepth && rows[count - 1].y == rows->y + (count - 1) * args_.y.row;
  }
  std::int64_t value_width() const { return round_up(args_.Dv, Tile::kCols); }
  std::int64_t depth() const { return ceil_div(args_.D, kItems); }
  std::int64_t keys_size() const { return round_up(args_.Skv, Tile::kCols) * depth(); }
  std::int64_t packed_size() const {
    return keys_size() + (values_in_place() ? 0 : ceil_div(args_.Skv, kItems) * value_width());
  }

  // What the block of rows from row0 on and its successor will touch: y, and the next queries, of the next head with
  // its keys and values if it comes next.
  void expect(Ahead<I>& ahead, std::int64_t head, std::int64_t row0, std::int64_t block, std::int64_t rows,
              bool next_head) const {
    expect_rows(ahead, args_.y, args_.Dv, head, row0, std::min(block, rows - row0));
    if (row0 + block < rows) {
      expect_rows(ahead, args_.q, args_.D, head, row0 + block, std::min(block, rows - row0 - block));
    } else if (next_head) {
      const std::int64_t b = (head + 1) / args_.Hkv, h = (head + 1) % args_.Hkv;
      const Range seen = keys_seen<I>(args_, b, 0, args_.Sq);
      ahead.add_rows(locate<const S>(args_.k, b, h, seen.begin), args_.k.row, seen.end - seen.begin, args_.D);
      ahead.add_rows(locate<const S>(args_.v, b, h, seen.begin), args_.v.row, seen.end - seen.begin, args_.Dv);
      expect_rows(ahead, args_.q, args_.D, head + 1, 0, block);
    }
  }

  // Rows [row0, row0 + count) of the heads that share a key/value head.
  void expect_rows(Ahead<I>& ahead, const AttentionOperand& of, std::int64_t width, std::int64_t head,
                   std::int64_t row0, std::int64_t count) const {
    const std::int64_t b = head / args_.Hkv, h0 = head % args_.Hkv * (args_.Hq / args_.Hkv);
    for (std::int64_t row = row0; row < row0 + count;) {
      const std::int64_t h = h0 + row / args_.Sq, i = row % args_.Sq;
      const std::int64_t n = std::min(row0 + count - row, args_.Sq - i);
      ahead.add_rows(locate<const S>(of, b, h, i), of.row, n, width);
      row += n;
    }
  }

  // K^T as panels of kCols keys, then V with its rows padded; only the keys in [begin, end) that some query sees.
  void pack(std::int64_t head, std::int64_t begin, std::int64_t end, T* memory) const {
    const std::int64_t b = head / args_.Hkv, h = head % args_.Hkv;
    const Range seen = keys_seen<I>(args_, b, 0, args_.Sq);
    begin = std::max(begin, seen.begin / Tile::kCols * Tile::kCols);
    end = std::min(end, seen.end);
    for (std::int64_t j = begin; j < end; j += Tile::kCols) {
      pack_lines<I, P>(locate<const S>(args_.k, b, h, j), args_.k.row, std::min<std::int64_t>(Tile::kCols, end - j),
                       args_.D, memory + j * depth());
    }
    if (values_in_place()) return;
    pack_rows<I, P>(locate<const S>(args_.v, b, h, 0), args_.v.row, {std::max(begin, seen.begin), end}, args_.Dv,
                    memory + keys_size(), value_width());
  }

  Packed packed(std::int64_t head, const T* memory) const {
    if constexpr (std::is_same_v<S, T>) {
      if (values_in_place()) {
        return {memory, locate<const S>(args_.v, head / args_.Hkv, head % args_.Hkv, 0), args_.v.row};
      }
    }
    return {memory, memory + keys_size(), value_width()};
  }

  void attend(std::int64_t head, std::int64_t row0, std::int64_t count, const Packed& packed, Ahead<I>& ahead) const {
    Row<S> rows[kBlockRows];
    T maximum[kBlockRows], sum[kBlockRows];
    Held held[kBlockRows] = {};  // per tile
    describe<I>(args_, head, row0, count, rows);
    fill<I>(maximum, 0, count, kLowest);
    fill<I>(sum, 0, count, T(0));
    const std::int64_t tiles = ceil_div(count, Tile::kRows);
    const std::int64_t slices = ceil_div(depth(), Tile::kDepth);
    const Scratch<T> queries(static_cast<std::size_t>(slices * Tile::kRows * Tile::kStride));
    const Scratch<T> logits(static_cast<std::size_t>(Tile::kRows * Tile::kStride));
    const Scratch<T> sums(static_cast<std::size_t>(count * value_width()));
    for (std::int64_t key0 = 0; key0 == 0 || key0 < args_.Skv; key0 += Tile::kDepth) {
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t first = count * t / tiles, end = count * (t + 1) / tiles;
        T* own = sums.data() + first * value_width();
        held[t] = attend_tile(rows + first, static_cast<int>(end - first), key0, packed, queries.data(), logits.data(),
                              {maximum + first, sum + first}, own, held[t], ahead);
        if (key0 + Tile::kDepth < args_.Skv) continue;
        finish<I, P>(rows + first, end - first, sum + first, held[t] == Held::sums ? own : nullptr, value_width(),
                     args_.Dv);
      }
    }
    store_lse<I>(Running<T>{maximum, sum}, count,
                 static_cast<T*>(args_.lse) + head * (args_.Hq / args_.Hkv) * args_.Sq + row0);
  }

  // Adds what the keys of one block give to a tile's rows.
  Held attend_tile(const Row<S>* rows, int count, std::int64_t key0, const Packed& packed, T* queries, T* logits,
                   Running<T> running, T* sums, Held held, Ahead<I>& ahead) const {
    Range seen{key0 + Tile::kDepth, key0};  // by any row of the tile
    for (int r = 0; r < count; ++r) {
      if (rows[r].keys.empty()) continue;
      seen.begin = std::min(seen.begin, std::max(key0, rows[r].keys.begin));
      seen.end = std::max(seen.end, std::min(key0 + Tile::kDepth, rows[r].keys.end));
    }
    if (seen.empty()) return held;
    const std::int64_t begin = seen.begin - key0, end = seen.end - key0;
    load_queries(rows, count, queries);
    T factors[Tile::kMostRows];
    fill<I>(factors, 0, count, factor());
    multiply_panels<I, P>(count, depth(), queries, Tile::kRows * Tile::kStride, packed.keys + key0 * depth(), begin,
                          end, logits, kPaired ? factors : nullptr, ahead);
    soften<I, P>(rows, count, args_.bias_col, key0, begin, end, logits, running, held == Held::sums ? sums : nullptr,
                 value_width());
    Sums<T> to{sums, value_width(), held == Held::sums};
    const bool in_place = outputs_in_place(rows, count);
    if (in_place) {
      invert<I>(running.sum, count, factors);
      to = {reinterpret_cast<T*>(rows->y), args_.y.row, false, factors};
    }
    const std::int64_t first = begin / kItems, last = ceil_div(end, kItems);
    const T* values = packed.values + (key0 / kItems + first) * packed.value_row;
    for (std::int64_t d = 0; d < value_width(); d += Tile::kCols, to.c += Tile::kCols) {
      multiply_tile<I, P>(count, last - first, logits + first, values + d, packed.value_row, to, ahead);
    }
    return in_place ? Held::output : Held::sums;
  }

  // What makes logits in units of log 2 of products.
  T factor() const { return static_cast<T>(args_.scale * kLog2E); }

  // The tile's queries as a left operand, times the factor but for pairs, whose products are multiplied by it.
  void load_queries(const Row<S>* rows, int count, T* queries) const {
    constexpr std::int64_t kDepth = Tile::kDepth * kItems;
    for (int r = 0; r < count; ++r) {
      for (std::int64_t d = 0; d < args_.D; d += kDepth) {
        const std::int64_t depth = std::min(kDepth, args_.D - d);
        load_line<I, P>(rows[r].q + d, depth, factor(), queries + (d / kDepth * Tile::kRows + r) * Tile::kStride,
                        depth);
      }
    }
  }

  const AttentionArgs& args_;
};

}  // namespace

template <Isa I>
void attention(const AttentionArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    if (args.Hq / args.Hkv * args.Sq <= kDecodeRows) {
      Decode<S, I>(args).run();
      return;
    }
    if constexpr (kPairs<I, S>) {
      if (has_bf16_dot<I>()) return Forward<S, I, PairProduct<I>>(args).run();
    }
    Forward<S, I, Product>(args).run();
  });
}

template void attention<Isa::DRUPE_ISA>(const AttentionArgs&);

}  // namespace drupe::cpu
