#include "ops/limits.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/check.h"
#include "core/parallel.h"
#include "ops/backend.h"
#include "ops/fill.h"

namespace drupe::ops {
namespace {

constexpr double kMaxSeconds = 60;
constexpr std::int64_t kMaxBytes = std::int64_t{1} << 40;
constexpr std::int64_t kPassBytes = 32 << 20;  // a run moves at least this much per thread: a millisecond or more
// The same of a whole GPU; an emulated one takes its time.
constexpr std::int64_t kDevicePassBytes = cuda::kEmulated ? 1 << 16 : std::int64_t{4} << 30;
constexpr std::int64_t kDeviceRepeats = cuda::kEmulated ? 4 : 4096, kBlocks = cuda::kEmulated ? 2 : 4096;

Limit parse(const std::string& name) {
  constexpr const char* kNames[] = {"fma_f32", "dot_bf16", "read", "copy", "copy_nt"};
  for (int i = 0; i < 5; ++i) {
    if (name == kNames[i]) return static_cast<Limit>(i);
  }
  fail("measure_limit", "name is \"", name, "\": expected fma_f32, dot_bf16, read, copy or copy_nt");
}

// Does the run to its end.
double run(const LimitArgs& args, Device device) {
  double work = 0;
  dispatch(
      device, [&]<Isa I>() { work = cpu::run_limit<I>(args); },
      [&](auto stream) {
        work = cuda::run_limit(args, stream);
        cuda::synchronize(device.index);
      });
  return work;
}

// The best rate of about `seconds` of runs; nullopt where they do nothing.
std::optional<double> best_rate(const LimitArgs& args, double seconds, Device device) {
  if (run(args, device) == 0) return std::nullopt;
  using Clock = std::chrono::steady_clock;
  double best = 0;
  const auto start = Clock::now();
  auto before = start;
  do {
    const double work = run(args, device);
    const auto after = Clock::now();
    best = std::max(best, work / std::chrono::duration<double>(after - before).count());
    before = after;
  } while (std::chrono::duration<double>(before - start).count() < seconds);
  return best;
}

}  // namespace

std::optional<double> measure_limit(const std::string& name, std::int64_t bytes, double seconds, Device device) {
  const Limit limit = parse(name);
  check(std::isfinite(seconds) && seconds > 0 && seconds <= kMaxSeconds, "measure_limit", "seconds is ", seconds,
        ": expected more than 0, at most ", kMaxSeconds);
  check(bytes >= 0 && bytes <= kMaxBytes, "measure_limit", "bytes is ", bytes, ": expected 0 to ", kMaxBytes);
  const bool on_cpu = device.type == DeviceType::cpu;
  const bool in_registers = limit == Limit::fma_f32 || limit == Limit::dot_bf16;
  const std::int64_t tasks = on_cpu ? num_threads() : kBlocks, slices = on_cpu ? tasks : 1;
  const int arrays = limit == Limit::copy || limit == Limit::copy_nt ? 2 : 1;
  const std::int64_t floats = bytes / static_cast<std::int64_t>(sizeof(float)) / (slices * arrays);
  const std::int64_t size = in_registers ? 0 : std::max(kLimitStep, floats / kLimitStep * kLimitStep);
  const std::int64_t pass = on_cpu ? kPassBytes : kDevicePassBytes;
  const std::int64_t repeats =
      in_registers ? (on_cpu ? 100000 : kDeviceRepeats)
                   : std::max<std::int64_t>(1, pass / (size * static_cast<std::int64_t>(sizeof(float))));

  const std::int64_t count = slices * size;
  const Tensor block = full({arrays * count}, 1.0, Dtype::f32, device);
  const Tensor sink = empty({tasks * kLimitSink}, Dtype::f32, device);
  const LimitArgs args{.limit = limit,
                       .src = block.data<float>(),
                       .dst = block.data<float>() + (arrays - 1) * count,
                       .sink = sink.data<float>(),
                       .tasks = tasks,
                       .size = size,
                       .repeats = repeats};
  if (on_cpu) {  // each thread's slice is first touched by a thread of the pool
    parallel_for(tasks, [&](std::int64_t task) { std::fill_n(block.data<float>() + task * size, size, 1.0f); });
  }
  return best_rate(args, seconds, device);
}

}  // namespace drupe::ops
