// Graphs: what a stream was given, captured once, replayed as a whole.
#include "cuda/graph.h"

#include <platform/driver.h>
#include <platform/stream.h>
#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace drupe::cuda {

class Capture {
 public:
  explicit Capture(Stream on)
      : stream(on), pool(std::make_shared<Pool>(Memory::graph, on.device, counters_of(on.device))) {}
  ~Capture();

  const Stream stream;
  std::uint64_t id = 0;
  const std::shared_ptr<Pool> pool;
  std::shared_ptr<void> random_state;
  driver::GraphHandle graph = nullptr;
  std::vector<std::shared_ptr<void>> owners;    // of page-locked memory that it copies from or to
  std::vector<std::pair<void*, Lease>> blocks;  // let go of during the capture
  std::vector<std::int64_t> checks;             // that its kernels make
  std::vector<Stream> replayed_on;
};

namespace {

std::mutex mutex;
std::map<std::uint64_t, Capture*> underway;
std::atomic<int> count_underway = 0;
thread_local Capture* of_thread = nullptr;

std::map<std::int64_t, Raise> checks;
std::int64_t next_check = 1;

[[noreturn]] void refuse(const char* what) {
  throw std::runtime_error(std::string("[cuda] ") + what +
                           " is not possible while a graph is captured: what is captured runs at the replay");
}

void leave(Capture& capture) {
  const std::lock_guard lock(mutex);
  count_underway -= static_cast<int>(underway.erase(capture.id));
  if (of_thread == &capture) of_thread = nullptr;
}

}  // namespace

Capture::~Capture() {
  if (graph) driver::destroy_graph(graph);
  for (auto& [block, lease] : blocks) {
    lease.users.insert(lease.users.end(), replayed_on.begin(), replayed_on.end());
    lease.pool->give_back(block, lease);
  }
  for (const std::shared_ptr<void>& owner : owners) {
    for (const Stream& user : replayed_on) record_use(owner, user);
  }
  const std::lock_guard lock(mutex);
  for (const std::int64_t check : checks) cuda::checks.erase(check);
}

Capture* capture_of(Stream stream) {
  if (count_underway == 0) return nullptr;
  const std::uint64_t id = driver::capture_id(stream);
  if (id == 0) return nullptr;
  const std::lock_guard lock(mutex);
  const auto found = underway.find(id);
  return found == underway.end() ? nullptr : found->second;
}
Capture* capture_of_thread() {
  return of_thread;
}
int device_of(const Capture& capture) {
  return capture.stream.device;
}
Pool& pool_of(Capture& capture) {
  return *capture.pool;
}
void keep(Capture& capture, std::shared_ptr<void> owner) {
  const std::lock_guard lock(mutex);
  capture.owners.push_back(std::move(owner));
}
void keep(Capture& capture, void* block, const Lease& lease) {
  const std::lock_guard lock(mutex);
  capture.blocks.emplace_back(block, lease);
}

void refuse_while_capturing(int device, const char* what) {
  if (count_underway == 0) return;
  const std::lock_guard lock(mutex);
  for (const auto& [id, capture] : underway) {
    if (capture->stream.device == device) refuse(what);
  }
}
void refuse_capturing(Stream stream, const char* what) {
  if (capture_of(stream)) refuse(what);
}
bool is_capturing(Device device) {
  return device.type == DeviceType::cuda && capture_of(current_stream(device.index)) != nullptr;
}

struct Graph::State {
  std::unique_ptr<Capture> capture;
};

Graph::Graph() : state_(std::make_unique<State>()) {
  check_available({DeviceType::cuda, 0});
}
Graph::~Graph() {
  abort();
}

void Graph::begin(Stream stream) {
  check_available({DeviceType::cuda, stream.device});
  if (state_->capture) throw std::runtime_error("[cuda] the graph was captured before: make another");
  if (of_thread) throw std::runtime_error("[cuda] this thread is capturing a graph already");
  if (!stream.handle) throw std::runtime_error("[cuda] the default stream cannot be captured");
  refuse_capturing(stream, "a capture of the same stream");
  auto capture = std::make_unique<Capture>(stream);
  capture->random_state = capture->pool->take(2 * sizeof(std::uint64_t), stream);
  error_record(stream.device);
  driver::begin_capture(stream);
  capture->id = driver::capture_id(stream);
  const std::lock_guard lock(mutex);
  underway[capture->id] = capture.get();
  ++count_underway;
  of_thread = capture.get();
  state_->capture = std::move(capture);
}

void Graph::end() {
  Capture* const capture = state_->capture.get();
  if (!capture || capture != of_thread) throw std::runtime_error("[cuda] this thread is not capturing this graph");
  leave(*capture);
  try {
    capture->graph = driver::end_capture(capture->stream);
  } catch (...) {
    driver::abort_capture(capture->stream);
    state_->capture = nullptr;
    throw;
  }
}

void Graph::abort() noexcept {
  Capture* const capture = state_->capture.get();
  if (!capture || capture->graph) return;
  driver::abort_capture(capture->stream);
  leave(*capture);
  state_->capture = nullptr;
}

void Graph::replay(Stream stream, std::uint64_t seed, std::uint64_t offset) {
  Capture* const capture = state_->capture.get();
  if (!capture || !capture->graph) throw std::runtime_error("[cuda] the graph has not been captured");
  if (stream.device != capture->stream.device) throw std::runtime_error("[cuda] the graph is another device's");
  refuse_capturing(stream, "a replay");
  // One after the other, on whatever streams.
  if (!capture->replayed_on.empty()) wait_for(stream, capture->replayed_on.back());
  std::erase_if(capture->replayed_on, [&](const Stream& other) { return other.handle == stream.handle; });
  capture->replayed_on.push_back(stream);
  store_words(static_cast<std::uint64_t*>(capture->random_state.get()), seed, offset, stream);
  if (!capture->checks.empty()) expect_reports(stream);
  driver::launch_graph(capture->graph, stream);
}

Tensor Graph::random_state() const {
  const Capture* const capture = state_->capture.get();
  if (!capture) throw std::runtime_error("[cuda] the graph is not being captured");
  void* data = capture->random_state.get();
  return Tensor(capture->random_state, data, {2}, {1}, Dtype::i64, {DeviceType::cuda, capture->stream.device});
}

// ---- what captured kernels report

namespace {

struct Reports {
  std::mutex mutex;
  ErrorRecord* record = nullptr;
  Stream stream;                 // on which the record is read, past whatever is queued elsewhere
  std::vector<Stream> expected;  // from what was replayed there
};

Reports& reports_of(int device) {
  static std::mutex guard;
  static auto* all = new std::map<int, Reports>;  // never destroyed
  const std::lock_guard lock(guard);
  return (*all)[device];
}

std::atomic<bool> any_expected = false;

}  // namespace

ErrorRecord* error_record(int device) {
  Reports& reports = reports_of(device);
  const std::lock_guard lock(reports.mutex);
  if (!reports.record) {
    const Stream stream = driver::create_stream(device);
    auto* record = static_cast<ErrorRecord*>(driver::allocate(sizeof(ErrorRecord), device));
    if (!record) throw OutOfMemory("[cuda] out of memory on cuda:" + std::to_string(device));
    driver::zero(record, sizeof(ErrorRecord), stream);
    driver::synchronize(stream);
    reports.record = record;
    reports.stream = stream;
  }
  return reports.record;
}

DeferredCheck defer_check(Device device, Raise raise) {
  Capture* const capture = capture_of(current_stream(device.index));
  if (!capture) throw std::logic_error("[cuda] a deferred check without a capture");
  const std::lock_guard lock(mutex);
  const std::int64_t id = next_check++;
  checks[id] = std::move(raise);
  capture->checks.push_back(id);
  return {.record = reports_of(device.index).record, .id = id};
}

void expect_reports(Stream stream) {
  Reports& reports = reports_of(stream.device);
  const std::lock_guard lock(reports.mutex);
  std::erase_if(reports.expected, [&](const Stream& other) { return other.handle == stream.handle; });
  reports.expected.push_back(stream);
  any_expected = true;
}

void raise_reports(Stream stream, bool whole_device) {
  if (!any_expected || of_thread) return;
  ErrorRecord found{};
  {
    Reports& reports = reports_of(stream.device);
    const std::lock_guard lock(reports.mutex);
    if (reports.expected.empty()) return;
    driver::copy(&found, reports.record, sizeof found, reports.stream);
    driver::synchronize(reports.stream);
    const bool reported = found.state == 2;
    std::erase_if(reports.expected, [&](const Stream& other) { return whole_device || other.handle == stream.handle; });
    if (!reported) return;
    driver::zero(&reports.record->state, sizeof found.state, reports.stream);
    driver::synchronize(reports.stream);
  }
  Raise raise;
  {
    const std::lock_guard lock(mutex);
    const auto check = checks.find(found.check);
    if (check != checks.end()) raise = check->second;
  }
  if (raise) raise(found.index, found.position);
  throw std::out_of_range("[cuda] a graph that is gone met an index out of range: " + std::to_string(found.index));
}

}  // namespace drupe::cuda
