#include "ops/limits.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/check.h"
#include "core/memory.h"
#include "core/parallel.h"

namespace drupe::ops {
namespace {

constexpr double kMaxSeconds = 60;
constexpr std::int64_t kMaxBytes = std::int64_t{1} << 40;
constexpr std::int64_t kPassBytes = 32 << 20;  // a run moves at least this much per thread: a millisecond or more

Limit parse(const std::string& name) {
  constexpr const char* kNames[] = {"fma_f32", "dot_bf16", "read", "copy", "copy_nt"};
  for (int i = 0; i < 5; ++i) {
    if (name == kNames[i]) return static_cast<Limit>(i);
  }
  fail("measure_limit", "name is \"", name, "\": expected fma_f32, dot_bf16, read, copy or copy_nt");
}

double run(const LimitArgs& args) {
  double work = 0;
  dispatch_isa([&]<Isa I>() { work = cpu::run_limit<I>(args); });
  return work;
}

}  // namespace

std::optional<double> measure_limit(const std::string& name, std::int64_t bytes, double seconds) {
  const Limit limit = parse(name);
  check(std::isfinite(seconds) && seconds > 0 && seconds <= kMaxSeconds, "measure_limit", "seconds is ", seconds,
        ": expected more than 0, at most ", kMaxSeconds);
  check(bytes >= 0 && bytes <= kMaxBytes, "measure_limit", "bytes is ", bytes, ": expected 0 to ", kMaxBytes);
  const bool in_registers = limit == Limit::fma_f32 || limit == Limit::dot_bf16;
  const std::int64_t tasks = num_threads();
  const int arrays = limit == Limit::copy || limit == Limit::copy_nt ? 2 : 1;
  const std::int64_t floats = bytes / static_cast<std::int64_t>(sizeof(float)) / (tasks * arrays);
  const std::int64_t size = in_registers ? 0 : std::max(kLimitStep, floats / kLimitStep * kLimitStep);
  const std::int64_t repeats =
      in_registers ? 100000 : std::max<std::int64_t>(1, kPassBytes / (size * static_cast<std::int64_t>(sizeof(float))));

  const auto count = static_cast<std::size_t>(tasks * size);
  const Scratch<float> block(count * static_cast<std::size_t>(arrays));
  const Scratch<float> sink(static_cast<std::size_t>(tasks * 16));
  const LimitArgs args{.limit = limit,
                       .src = block.data(),
                       .dst = block.data() + (arrays - 1) * count,
                       .sink = sink.data(),
                       .tasks = tasks,
                       .size = size,
                       .repeats = repeats};
  parallel_for(tasks, [&](std::int64_t task) { std::fill_n(block.data() + task * size, size, 1.0f); });
  if (run(args) == 0) return std::nullopt;

  using Clock = std::chrono::steady_clock;
  double best = 0;
  const auto start = Clock::now();
  auto before = start;
  do {
    const double work = run(args);
    const auto after = Clock::now();
    best = std::max(best, work / std::chrono::duration<double>(after - before).count());
    before = after;
  } while (std::chrono::duration<double>(before - start).count() < seconds);
  return best;
}

}  // namespace drupe::ops
