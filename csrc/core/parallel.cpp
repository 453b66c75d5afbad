#include "core/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/check.h"

namespace drupe {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kSpins = 4000;  // about 20 us of polling before a waiting thread sleeps

int available_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

int default_threads() {
  if (const char* text = std::getenv("DRUPE_NUM_THREADS")) {
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (end != text && *end == '\0' && value >= 1 && value <= kMaxThreads) return static_cast<int>(value);
  }
  return available_cpus();
}

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

thread_local bool inside_parallel = false;

// One job at a time. Its tasks lie in as many blocks as there are threads: a thread walks its own first, so that
// memory streams past it in order, and then helps with the next ones' until all have run out.
class Pool {
 public:
  explicit Pool(int threads) : blocks_(static_cast<std::size_t>(threads)) {
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::exception&) {  // the system has no more threads to give: those there are do the work
    }
  }

  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(std::int64_t tasks, FunctionRef<void(std::int64_t)> body) {
    {
      std::lock_guard lock(mutex_);
      body_ = &body;
      const auto count = static_cast<std::int64_t>(blocks_.size());
      for (std::int64_t i = 0; i < count; ++i) {
        Block& block = blocks_[static_cast<std::size_t>(i)];
        block.next.store(first_task(tasks, i, count), std::memory_order_relaxed);
        block.end = first_task(tasks, i + 1, count);
      }
      error_ = nullptr;
      open_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    draw_tasks(0);
    {
      std::lock_guard lock(mutex_);
      open_ = false;  // a worker that wakes only now finds nothing to join
    }
    for (int spin = 0; joined_.load(std::memory_order_acquire) != 0; ++spin) {
      if (spin < kSpins) {
        pause_cpu();
      } else {
        std::this_thread::yield();
      }
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  struct alignas(64) Block {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  static std::int64_t first_task(std::int64_t tasks, std::int64_t block, std::int64_t blocks) {
    return tasks / blocks * block + std::min(tasks % blocks, block);
  }

  void draw_tasks(std::size_t own) {
    inside_parallel = true;
    try {
      for (std::size_t i = 0; i < blocks_.size(); ++i) draw_tasks(blocks_[(own + i) % blocks_.size()]);
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      for (Block& block : blocks_) block.next.store(block.end, std::memory_order_relaxed);
    }
    inside_parallel = false;
  }

  void draw_tasks(Block& block) {
    for (;;) {
      const std::int64_t task = block.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= block.end) break;
      (*body_)(task);
    }
  }

  void work(int own) {
    std::uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin) pause_cpu();
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        if (stop_) return;
        seen = generation_.load(std::memory_order_relaxed);
        if (!open_) continue;
        joined_.fetch_add(1, std::memory_order_relaxed);
      }
      draw_tasks(static_cast<std::size_t>(own));
      joined_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<Block> blocks_;  // one for each thread, the caller's first
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<int> joined_{0};  // workers that draw from the job
  bool open_ = false;           // whether they may still join it
  FunctionRef<void(std::int64_t)>* body_ = nullptr;
  std::exception_ptr error_;
  bool stop_ = false;
};

struct State {
  std::mutex use;  // held by the thread whose job the pool runs
  Pool* pool = nullptr;
  std::atomic<int> threads{default_threads()};
};

State& state() {
  static State* instance = [] {
    // A forked child has none of the pool's threads: it starts over with a pool of its own.
    pthread_atfork(nullptr, nullptr, [] {
      State& s = state();
      new (&s.use) std::mutex;
      s.pool = nullptr;
      inside_parallel = false;
    });
    return new State;
  }();
  return *instance;
}

}  // namespace

int num_threads() {
  return state().threads.load();
}

void set_num_threads(int count) {
  check(count >= 1 && count <= kMaxThreads, "set_num_threads", "count is ", count, ": expected 1 to ", kMaxThreads);
  check(!inside_parallel, "set_num_threads", "called from inside a parallel region");
  State& s = state();
  std::lock_guard lock(s.use);
  delete s.pool;
  s.pool = nullptr;
  s.threads = count;
}

void parallel_for(std::int64_t tasks, FunctionRef<void(std::int64_t)> body) {
  State& s = state();
  if (tasks > 1 && !inside_parallel && s.threads.load(std::memory_order_relaxed) > 1) {
    // Another Python thread may be using the pool: then this one runs its job alone.
    if (std::unique_lock lock(s.use, std::try_to_lock); lock) {
      if (!s.pool) s.pool = new Pool(s.threads);
      s.pool->run(tasks, body);
      return;
    }
  }
  for (std::int64_t task = 0; task < tasks; ++task) body(task);
}

void parallel_ranges(std::int64_t size, std::int64_t grain, FunctionRef<void(std::int64_t, std::int64_t)> body) {
  const std::int64_t tasks = (size + grain - 1) / grain;
  parallel_for(tasks, [&](std::int64_t task) { body(task * grain, std::min(size, (task + 1) * grain)); });
}

}  // namespace drupe
