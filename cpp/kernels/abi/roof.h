// Roofs: loops that move the same bytes as a kernel, with next to no arithmetic. Only benches call them.
#pragma once

#include <cstdint>

#include "rules/rule.h"

namespace fusedstep {

// Of a step: one array is read, the others are read and written.
struct RoofArgs {
  const float* read;
  float* read_write[1 + kMaxStates];
};

// Elements [begin, end). step[k]: 1 + k arrays are read and written. map: out = a, or a + b.
struct RoofKernels {
  void (*step[1 + kMaxStates])(const RoofArgs&, std::int64_t begin, std::int64_t end);
  void (*map)(const float* a, const float* b, float* out, bool stream, std::int64_t begin, std::int64_t end);
};

}  // namespace fusedstep
