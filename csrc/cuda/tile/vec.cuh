// Several elements that move in one instruction, 16 bytes at most.
#pragma once

#include <platform/device.cuh>

namespace drupe::cuda {

template <class T, int kSize>
struct alignas(sizeof(T) * kSize) Pack {
  T element[kSize];
};

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));

template <int kSize, class T>
__device__ __forceinline__ Pack<T, kSize> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, kSize>*>(from);
}

template <int kSize, class T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, kSize>& pack) {
  *reinterpret_cast<Pack<T, kSize>*>(to) = pack;
}

// Whether packs of 16 bytes may be read and written at all these addresses.
template <class... P>
bool is_pack_aligned(const P*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

}  // namespace drupe::cuda
