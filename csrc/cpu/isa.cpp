#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>

#include "core/check.h"

namespace drupe {
namespace {

bool processor_has(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512cd") && processor_has(Isa::avx2);
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
             __builtin_cpu_supports("bmi2");
    default:
      return true;
  }
#else
  return isa == Isa::scalar || isa == Isa::neon;  // every 64-bit ARM processor has it, and no other build contains it
#endif
}

constexpr Isa kBuilt[] = {
    Isa::scalar,
#if defined(DRUPE_HAS_avx2)
    Isa::avx2,
#endif
#if defined(DRUPE_HAS_avx512)
    Isa::avx512,
#endif
#if defined(DRUPE_HAS_neon)
    Isa::neon,
#endif
};

struct Choice {
  std::atomic<Isa> isa;
  std::string reason;
};

Isa parse(const std::string& name) {
  std::string known;
  for (Isa isa : available_isas()) {
    if (name == name_of(isa)) return isa;
    known += std::string(known.empty() ? "" : ", ") + name_of(isa);
  }
  fail("cpu", "instruction set is \"", name, "\": this build on this processor has ", known);
}

Choice& choice() {
  static Choice instance = [] {
    if (const char* name = std::getenv("DRUPE_CPU_ISA"); name && *name) {
      return Choice{parse(name), "set by DRUPE_CPU_ISA"};
    }
    return Choice{available_isas().back(), "the strongest that this processor has"};
  }();
  return instance;
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::neon:
      return "neon";
    default:
      return "scalar";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> found;
  for (Isa isa : kBuilt) {
    if (processor_has(isa)) found.push_back(isa);
  }
  return found;
}

Isa current_isa() {
  return choice().isa.load(std::memory_order_relaxed);
}
std::string isa_reason() {
  return choice().reason;
}

void set_isa(const std::string& name) {
  choice().isa = parse(name);
  choice().reason = "set by the caller";
}

}  // namespace drupe
