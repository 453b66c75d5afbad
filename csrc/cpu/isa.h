// The instruction sets that the CPU kernels are compiled for, and the choice among them at run time.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace drupe {

enum class Isa : std::uint8_t { scalar, avx2, avx512, neon };

const char* name_of(Isa isa);

// Those that this build contains and this processor can run, weakest first.
std::vector<Isa> available_isas();

// The one in use: the strongest available, or what DRUPE_CPU_ISA or set_isa named.
Isa current_isa();
// Why: "detected: …" or "set by DRUPE_CPU_ISA".
std::string isa_reason();
// Throws std::invalid_argument for a name that is unknown or unavailable here.
void set_isa(const std::string& name);

// Calls f.operator()<Isa>() for the ISA in use.
template <class F>
decltype(auto) dispatch_isa(F&& f) {
  switch (current_isa()) {
#if defined(DRUPE_HAS_avx512)
    case Isa::avx512:
      return f.template operator()<Isa::avx512>();
#endif
#if defined(DRUPE_HAS_avx2)
    case Isa::avx2:
      return f.template operator()<Isa::avx2>();
#endif
#if defined(DRUPE_HAS_neon)
    case Isa::neon:
      return f.template operator()<Isa::neon>();
#endif
    default:
      return f.template operator()<Isa::scalar>();
  }
}

}  // namespace drupe
