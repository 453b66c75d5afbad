#include "cuda/emu/stream.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace drupe::emu {
namespace {

struct StreamState;
// How much of what was captured on each stream comes before a point of one.
using Frontier = std::map<const StreamState*, std::uint64_t>;

struct Capture {
  std::uint64_t id;
  StreamState* origin;
  Graph work;
  Frontier recorded;
  std::vector<StreamState*> members;
  std::string spoiled;  // by what
  bool ended = false;
};

struct StreamState {
  std::shared_ptr<Capture> capture;
  Frontier seen;
};

struct EventState {
  bool timed;
  bool recorded = false;
  std::chrono::steady_clock::time_point when;
  std::shared_ptr<Capture> capture;  // in which it was recorded last
  Frontier seen;
};

std::mutex mutex;
std::uint64_t captures = 0;
std::vector<std::shared_ptr<Capture>> underway;
thread_local Capture* of_thread = nullptr;  // the one that this thread began
thread_local int allowed = 0;

std::mutex late_mutex;
std::vector<Work> late;
std::atomic<bool> any_late = false;

// Under the mutex. Other libraries' streams, and the thread's own default one, are as good as the default one.
std::set<void*>& streams() {
  static auto* all = new std::set<void*>;
  return *all;
}
bool is_default(void* stream) {
  return !streams().contains(stream);
}
StreamState& state_of(void* stream) {
  static StreamState* default_stream = new StreamState;
  return is_default(stream) ? *default_stream : *static_cast<StreamState*>(stream);
}
EventState& event_of(void* event) {
  return *static_cast<EventState*>(event);
}

[[noreturn]] void fail(const std::string& call, const std::string& why) {
  throw std::runtime_error("[cuda emulator] " + call + ": " + why);
}

// The caller holds the mutex.
[[noreturn]] void spoil(Capture& capture, const std::string& call, const std::string& why) {
  if (capture.spoiled.empty()) capture.spoiled = call + ": " + why;
  fail(call, why);
}

constexpr const char* kNotPermitted = "operation not permitted when stream is capturing";

void record(StreamState& stream, const Work& work) {
  Capture& capture = *stream.capture;
  if (!capture.spoiled.empty()) fail("a launch", "the capture was spoiled by an earlier error: " + capture.spoiled);
  capture.work.push_back(work);
  stream.seen[&stream] = ++capture.recorded[&stream];
}

void merge(Frontier& into, const Frontier& from) {
  for (const auto& [stream, count] : from) into[stream] = std::max(into[stream], count);
}

void join(StreamState& stream, const std::shared_ptr<Capture>& capture) {
  stream.capture = capture;
  stream.seen.clear();
  capture->members.push_back(&stream);
}

// Lets go of the streams.
void finish(Capture& capture) {
  for (StreamState* member : capture.members) {
    member->capture = nullptr;
    member->seen.clear();
  }
  capture.ended = true;
  if (of_thread == &capture) of_thread = nullptr;
  std::erase_if(underway, [&](const auto& other) { return other.get() == &capture; });
}

}  // namespace

void* create_stream() {
  const std::lock_guard lock(mutex);
  return *streams().insert(new StreamState).first;
}

void enqueue(void* stream, const Work& work) {
  {
    const std::lock_guard lock(mutex);
    StreamState& state = state_of(stream);
    if (state.capture) return record(state, work);
  }
  land_copies();
  work();
}

void enqueue_late(void* stream, const Work& work) {
  {
    const std::lock_guard lock(mutex);
    StreamState& state = state_of(stream);
    if (state.capture) return record(state, work);
  }
  const std::lock_guard lock(late_mutex);
  late.push_back(work);
  any_late = true;
}

void land_copies() {
  if (!any_late) return;
  const std::lock_guard lock(late_mutex);
  for (const Work& work : late) work();
  late.clear();
  any_late = false;
}

void synchronize_stream(void* stream) {
  refuse_captured(stream, "cudaStreamSynchronize");
  land_copies();
}

void synchronize_device() {
  {
    const std::lock_guard lock(mutex);
    if (!underway.empty()) spoil(*underway.back(), "cudaDeviceSynchronize", kNotPermitted);
  }
  land_copies();
}

void* create_event(bool timed) {
  return new EventState{.timed = timed, .when = {}, .capture = nullptr, .seen = {}};
}

void destroy_event(void* event) {
  delete &event_of(event);
}

void record_event(void* event, void* stream) {
  const std::lock_guard lock(mutex);
  EventState& state = event_of(event);
  const StreamState& source = state_of(stream);
  state.capture = source.capture;
  state.seen = source.seen;
  state.when = std::chrono::steady_clock::now();
  state.recorded = true;
}

void wait_event(void* stream, void* event) {
  const char* call = "cudaStreamWaitEvent";
  const std::lock_guard lock(mutex);
  const EventState& state = event_of(event);
  StreamState& waiter = state_of(stream);
  if (!state.recorded) return;
  if (!state.capture) {
    if (waiter.capture) {
      spoil(*waiter.capture, call, "dependency created on uncaptured work in another stream");
    }
    return;
  }
  if (state.capture->ended) fail(call, "the event was recorded in a capture that has ended");
  if (is_default(stream)) {
    spoil(*state.capture, call, "operation would make the legacy stream depend on a capturing blocking stream");
  }
  if (waiter.capture && waiter.capture != state.capture) {
    spoil(*state.capture, call, "a dependency would have merged two captures");
  }
  if (!waiter.capture) join(waiter, state.capture);
  merge(waiter.seen, state.seen);
}

void synchronize_event(void* event) {
  {
    const std::lock_guard lock(mutex);
    EventState& state = event_of(event);
    if (state.capture) {
      spoil(*state.capture, "cudaEventSynchronize",
            "operation not permitted on an event last recorded in a capturing stream");
    }
  }
  land_copies();
}

bool query_event(void* event) {
  refuse_in_capture("cudaEventQuery");
  synchronize_event(event);
  return true;
}

float elapsed_ms(void* start, void* end) {
  const char* call = "cudaEventElapsedTime";
  const std::lock_guard lock(mutex);
  for (void* event : {start, end}) {
    const EventState& state = event_of(event);
    if (!state.recorded || !state.timed || state.capture) {
      fail(call, "invalid resource handle: an event that was not recorded, or made without timing");
    }
  }
  return std::chrono::duration<float, std::milli>(event_of(end).when - event_of(start).when).count();
}

void begin_capture(void* stream) {
  const char* call = "cudaStreamBeginCapture";
  const std::lock_guard lock(mutex);
  StreamState& state = state_of(stream);
  if (is_default(stream)) fail(call, "operation not permitted on the legacy default stream");
  if (state.capture) spoil(*state.capture, call, "the stream is being captured already");
  if (of_thread) fail(call, "this thread is capturing already");
  auto capture = std::make_shared<Capture>();
  capture->id = ++captures;
  capture->origin = &state;
  underway.push_back(capture);
  of_thread = capture.get();
  join(state, capture);
}

Graph* end_capture(void* stream) {
  const char* call = "cudaStreamEndCapture";
  const std::lock_guard lock(mutex);
  const std::shared_ptr<Capture> capture = state_of(stream).capture;
  if (!capture) fail(call, "the stream is not being captured");
  if (of_thread != capture.get()) fail(call, "the capture was begun by another thread");
  if (capture->origin != &state_of(stream)) spoil(*capture, call, "the capture was begun on another stream");
  const Frontier seen = capture->origin->seen;
  finish(*capture);
  if (!capture->spoiled.empty()) {
    fail(call, "operation failed due to a previous error during capture: " + capture->spoiled);
  }
  for (const auto& [member, count] : capture->recorded) {
    const auto found = seen.find(member);
    if (found == seen.end() || found->second < count) {
      fail(call, "capturing stream has unjoined work: it must wait for the streams that wait for it");
    }
  }
  return new Graph(std::move(capture->work));
}

void abort_capture(void* stream) noexcept {
  const std::lock_guard lock(mutex);
  if (const std::shared_ptr<Capture> capture = state_of(stream).capture) finish(*capture);
}

std::uint64_t capture_id(void* stream) {
  const std::lock_guard lock(mutex);
  const StreamState& state = state_of(stream);
  return state.capture ? state.capture->id : 0;
}

void replay(const Graph& graph, void* stream) {
  refuse_captured(stream, "cudaGraphLaunch");
  land_copies();
  for (const Work& work : graph) work();
}

void refuse_in_capture(const char* call) {
  const std::lock_guard lock(mutex);
  if (of_thread && allowed == 0) spoil(*of_thread, call, kNotPermitted);
}

void refuse_captured(void* stream, const char* call) {
  const std::lock_guard lock(mutex);
  if (const auto& capture = state_of(stream).capture) spoil(*capture, call, kNotPermitted);
}

AllowInCapture::AllowInCapture() {
  ++allowed;
}
AllowInCapture::~AllowInCapture() {
  --allowed;
}

}  // namespace drupe::emu
