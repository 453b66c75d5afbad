// What the runtime's parts share of captures that are under way, and of what captured kernels report.
#pragma once

#include <cstdint>
#include <memory>

#include "core/cuda.h"
#include "cuda/pool.h"

namespace drupe::cuda {

// A capture, and what its graph then holds.
class Capture;

// That which the stream takes part in, and that which this thread began; null where there is none.
Capture* capture_of(Stream stream);
Capture* capture_of_thread();
int device_of(const Capture& capture);
Pool& pool_of(Capture& capture);
// The graph keeps it as long as it lives.
void keep(Capture& capture, std::shared_ptr<void> owner);
void keep(Capture& capture, void* block, const Lease& lease);

// Throw std::runtime_error where any stream of the device, or that one, is being captured.
void refuse_while_capturing(int device, const char* what);
void refuse_capturing(Stream stream, const char* what);

// Where kernels of captured graphs report; made on the first call, which must not be during a capture.
ErrorRecord* error_record(int device);
// A graph that makes checks was replayed there.
void expect_reports(Stream stream);
// Throws what the device has reported; the stream, or the whole device, was waited for.
void raise_reports(Stream stream, bool whole_device);

// {first, second} to the device's memory.
void store_words(std::uint64_t* to, std::uint64_t first, std::uint64_t second, Stream stream);

}  // namespace drupe::cuda
