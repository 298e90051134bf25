#include "runtime/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fusedstep {

#define FUSEDSTEP_DECLARE(set)    \
  namespace set {                 \
  extern const KernelTable table; \
  }
#if defined(__x86_64__)
FUSEDSTEP_DECLARE(avx2)
#if !defined(FUSEDSTEP_ONE_SET)
FUSEDSTEP_DECLARE(baseline)
FUSEDSTEP_DECLARE(avx512)
#endif
#elif defined(__aarch64__)
FUSEDSTEP_DECLARE(neon)
#else
FUSEDSTEP_DECLARE(baseline)
#endif

namespace runtime {
namespace {

struct Set {
  const KernelTable* table;
  bool (*runs)();
};

#if defined(__x86_64__)
// clang before 19 does not know the name in __builtin_cpu_supports.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// Worst first. The flags asked for are those that CMakeLists.txt compiles the set with; the compiler's query also asks
// the operating system whether it saves the wide registers.
const Set kSets[] = {
#if defined(__x86_64__)
#if !defined(FUSEDSTEP_ONE_SET)
    {&baseline::table, [] { return true; }},
#endif
    {&avx2::table, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }},
#if !defined(FUSEDSTEP_ONE_SET)
    {&avx512::table,
     [] {
       return __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl");
     }},
#endif
#elif defined(__aarch64__)
    {&neon::table, [] { return true; }},
#else
    {&baseline::table, [] { return true; }},
#endif
};

const char kReference[] = "numpy";

// A table without kernels stands for the reference, so that null can mean "not chosen yet".
const KernelTable kReferenceTable = {};
std::atomic<const KernelTable*> active{nullptr};

const KernelTable* find(const std::string& name, const char* source) {
  if (name == kReference) return &kReferenceTable;
  if (const KernelTable* table = find_table(name)) return table;
  std::string valid;
  for (const std::string& set : available_sets()) valid += (valid.empty() ? "'" : ", '") + set + "'";
  throw std::invalid_argument(std::string(source) + ": '" + name +
                              "' is not an instruction set of this processor; valid: " + valid);
}

const KernelTable* first_choice() {
  const char* name = std::getenv("FUSEDSTEP_ISA");
  const bool given = name != nullptr && *name != '\0';
  return given ? find(name, "FUSEDSTEP_ISA") : find(available_sets().back(), "isa");
}

}  // namespace

std::vector<std::string> available_sets() {
  std::vector<std::string> names = {kReference};
  for (const Set& set : kSets) {
    if (set.runs()) names.push_back(set.table->name);
  }
  return names;
}

const KernelTable* find_table(const std::string& name) {
  for (const Set& set : kSets) {
    if (set.table->name == name && set.runs()) return set.table;
  }
  return nullptr;
}

const KernelTable* active_table() {
  const KernelTable* table = active.load(std::memory_order_relaxed);
  if (table == nullptr) active = table = first_choice();
  return table == &kReferenceTable ? nullptr : table;
}

std::string active_set() {
  const KernelTable* table = active_table();
  return table == nullptr ? kReference : table->name;
}

void activate_set(const std::string& name) { active = find(name, "isa"); }

}  // namespace runtime
}  // namespace fusedstep
