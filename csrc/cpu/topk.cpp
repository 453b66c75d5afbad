// One row a step. topk keeps the best k so far in a heap with the worst at its root: a row is read once, and only
// elements that beat the root cost more than a comparison. argmax finds the extreme with vectors, then its first place.
#include "ops/topk.h"

#include <algorithm>
#include <type_traits>

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/simd.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;  // elements a task

template <class T>
using Key = std::conditional_t<std::is_floating_point_v<Accumulator<T>>, Accumulator<T>, std::int64_t>;

template <class K>
struct Entry {
  K key;
  std::int64_t index;
};

// NaN is greater than every number.
template <class K>
DRUPE_INLINE bool greater(K a, K b) {
  return a > b || (a != a && b == b);
}

template <bool kLargest, class K>
DRUPE_INLINE bool better(const Entry<K>& a, const Entry<K>& b) {
  if (greater(a.key, b.key)) return kLargest;
  if (greater(b.key, a.key)) return !kLargest;
  return a.index < b.index;
}

// Restores the heap below `root`, in which no child comes after its parent in the order `before`.
template <class K, class Before>
void sift_down(Entry<K>* heap, std::int64_t size, std::int64_t root, const Before& before) {
  const Entry<K> moved = heap[root];
  for (;;) {
    std::int64_t child = 2 * root + 1;
    if (child >= size) break;
    if (child + 1 < size && before(heap[child], heap[child + 1])) ++child;
    if (!before(moved, heap[child])) break;
    heap[root] = heap[child];
    root = child;
  }
  heap[root] = moved;
}

template <class K, class Before>
void make_heap(Entry<K>* heap, std::int64_t size, const Before& before) {
  for (std::int64_t root = size / 2 - 1; root >= 0; --root) sift_down(heap, size, root, before);
}

// From a heap to the order `before`.
template <class K, class Before>
void sort_heap(Entry<K>* heap, std::int64_t size, const Before& before) {
  for (std::int64_t last = size - 1; last > 0; --last) {
    const Entry<K> top = heap[0];
    heap[0] = heap[last];
    heap[last] = top;
    sift_down(heap, last, 0, before);
  }
}

// Whether one of the next elements might beat `worst`; a vector at a time, as few do.
template <bool kLargest, class K, class T, Isa I>
DRUPE_INLINE bool any_better(const T* x, K worst) {
  using V = Vec<K, I>;
  const V v = V::load(x), limit = V::set(worst);
  if constexpr (kLargest) return (~(v <= limit)).any() && worst == worst;
  return (v < limit).any() || worst != worst;
}

template <class T, bool kLargest, Isa I>
void topk_row(const TopkArgs& args, const T* x, std::int64_t row, Entry<Key<T>>* heap) {
  using K = Key<T>;
  const auto before = [](const Entry<K>& a, const Entry<K>& b) { return better<kLargest>(a, b); };
  for (std::int64_t i = 0; i < args.k; ++i) heap[i] = {static_cast<K>(x[i]), i};
  make_heap(heap, args.k, before);
  constexpr std::int64_t L = Vec<K, I>::kLanes;
  std::int64_t checked = args.k;  // up to here there may be better ones
  for (std::int64_t i = args.k; i < args.size; ++i) {
    if (i == checked) {
      while (i + L <= args.size && !any_better<kLargest, K, T, I>(x + i, heap[0].key)) i += L;
      if (i == args.size) break;
      checked = std::min(args.size, i + L);
    }
    const Entry<K> entry{static_cast<K>(x[i]), i};
    if (!before(entry, heap[0])) continue;
    heap[0] = entry;
    sift_down(heap, args.k, 0, before);
  }
  if (args.sorted) {
    sort_heap(heap, args.k, before);
  } else {
    const auto by_index = [](const Entry<K>& a, const Entry<K>& b) { return a.index < b.index; };
    make_heap(heap, args.k, by_index);
    sort_heap(heap, args.k, by_index);
  }
  for (std::int64_t i = 0; i < args.k; ++i) {
    args.indices[row * args.k + i] = heap[i].index;
    static_cast<T*>(args.values)[row * args.k + i] = x[heap[i].index];
  }
}

template <bool kLargest, class K, Isa I>
DRUPE_INLINE Vec<K, I> extreme(Vec<K, I> a, Vec<K, I> b) {
  if constexpr (kLargest) return select(a == a, max(a, b), a);
  return select(a == a, min(a, b), a);
}

template <class T, bool kLargest, Isa I>
std::int64_t find_extremum(const T* x, std::int64_t size) {
  using K = Key<T>;
  using V = Vec<K, I>;
  constexpr std::int64_t L = V::kLanes;
  K best = static_cast<K>(x[0]);
  const auto consider = [&](K key) {
    if (best == best && (key != key || (kLargest ? key > best : key < best))) best = key;
  };
  std::int64_t i = 0;
  if (size >= 2 * L) {
    V a = V::load(x), b = V::load(x + L);
    for (i = 2 * L; i + 2 * L <= size; i += 2 * L) {
      a = extreme<kLargest>(a, V::load(x + i));
      b = extreme<kLargest>(b, V::load(x + i + L));
    }
    K lanes[L];
    extreme<kLargest>(a, b).store(lanes);
    for (K key : lanes) consider(key);
  }
  for (; i < size; ++i) consider(static_cast<K>(x[i]));
  const auto is_it = [&](K key) { return key == best || (best != best && key != key); };
  const V wanted = V::set(best);
  std::int64_t j = 0;
  if (best == best) {
    while (j + L <= size && !(V::load(x + j) == wanted).any()) j += L;
  }
  while (!is_it(static_cast<K>(x[j]))) ++j;
  return j;
}

}  // namespace

template <Isa I>
void topk(const TopkArgs& args) {
  dispatch_any(args.dtype, [&]<class T>() {
    parallel_ranges(args.rows, std::max<std::int64_t>(1, kGrain / args.size),
                    [&](std::int64_t begin, std::int64_t end) {
                      const Scratch<Entry<Key<T>>> heap(static_cast<std::size_t>(args.k));
                      for (std::int64_t row = begin; row < end; ++row) {
                        const T* x = static_cast<const T*>(args.x) + row * args.size;
                        if (args.largest) {
                          topk_row<T, true, I>(args, x, row, heap.data());
                        } else {
                          topk_row<T, false, I>(args, x, row, heap.data());
                        }
                      }
                    });
  });
}

template <Isa I>
void topk_backward(const TopkBackwardArgs& args) {
  dispatch_float(args.dtype, [&]<class T>() {
    for (std::int64_t row = 0; row < args.rows; ++row) {
      const std::int64_t* indices = args.indices + row * args.k;
      const T* dy = static_cast<const T*>(args.dy) + row * args.k;
      T* dx = static_cast<T*>(args.dx) + row * args.size;
      for (std::int64_t i = 0; i < args.k; ++i) dx[indices[i]] = dy[i];
    }
  });
}

template <Isa I>
void arg_extremum(const ArgExtremumArgs& args) {
  dispatch_any(args.dtype, [&]<class T>() {
    parallel_ranges(
        args.rows, std::max<std::int64_t>(1, kGrain / args.size), [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t row = begin; row < end; ++row) {
            const T* x = static_cast<const T*>(args.x) + row * args.size;
            args.indices[row] =
                args.largest ? find_extremum<T, true, I>(x, args.size) : find_extremum<T, false, I>(x, args.size);
          }
        });
  });
}

template void topk<Isa::DRUPE_ISA>(const TopkArgs&);
template void topk_backward<Isa::DRUPE_ISA>(const TopkBackwardArgs&);
template void arg_extremum<Isa::DRUPE_ISA>(const ArgExtremumArgs&);

}  // namespace drupe::cpu
