// The emulated device's memory: a range of addresses that host code cannot touch. It opens for launches and copies.
#pragma once

#include <cstddef>

namespace drupe::emu {

// Aligned to 256 bytes, filled with ones; null where the device has not that much left.
void* device_allocate(std::size_t bytes);
void device_free(void* block);
// Only the first `bytes` of a block may be used from now on, none where a pool keeps it; they are filled with ones
// again.
void device_reuse(void* block, std::size_t bytes);

bool is_device_address(const void* address);
// Whether all these bytes lie within one live block.
bool is_device_range(const void* address, std::size_t bytes);

std::size_t device_capacity();

// Memory of the host that the device can copy from and to by itself, filled with ones; null where there is no more.
void* pinned_allocate(std::size_t bytes);
void pinned_free(void* block);
bool is_pinned_address(const void* address);

// While one lives, the device's memory can be touched.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

}  // namespace drupe::emu
