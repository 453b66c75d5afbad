// The emulated device's streams, events and graphs. Work runs when it is queued, unless its stream is being captured:
// then it is recorded, and runs at each replay, in the order in which it was recorded. What a GPU's driver forbids
// during a capture is an error here too, and spoils the capture.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace drupe::emu {

using Work = std::function<void()>;

// A null stream is the default one, which cannot be captured.
void* create_stream();
// Runs the work, or records it where the stream is being captured.
void enqueue(void* stream, const Work& work);
// The same of an asynchronous copy, which comes as late as it legally may: when the device is next used or waited for.
void enqueue_late(void* stream, const Work& work);
// Brings the late copies to an end.
void land_copies();
void synchronize_stream(void* stream);
void synchronize_device();

void* create_event(bool timed);
void destroy_event(void* event);
void record_event(void* event, void* stream);
void wait_event(void* stream, void* event);
void synchronize_event(void* event);
// Whether what the event stands for has happened.
bool query_event(void* event);
float elapsed_ms(void* start, void* end);

using Graph = std::vector<Work>;

// The calling thread captures what goes to the stream, and to those that wait for its events.
void begin_capture(void* stream);
Graph* end_capture(void* stream);
void abort_capture(void* stream) noexcept;
std::uint64_t capture_id(void* stream);  // 0: none
void replay(const Graph& graph, void* stream);

// Throws where the calling thread is capturing, of what a driver takes for unsafe then: unless it is asked to look
// away.
void refuse_in_capture(const char* call);
// Throws, and spoils the capture, where the stream is being captured.
void refuse_captured(void* stream, const char* call);

class AllowInCapture {
 public:
  AllowInCapture();
  ~AllowInCapture();
  AllowInCapture(const AllowInCapture&) = delete;
  AllowInCapture& operator=(const AllowInCapture&) = delete;
};

}  // namespace drupe::emu
