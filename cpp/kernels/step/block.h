// A block of a step: where its values are, and the rule on them.
#pragma once

#include "kernels/step/stages.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class T>
struct Block {
  T* p;
  const T* raw;  // the gradient as it came
  const T* g;    // the gradient after the gradient stage
  void* s[kMaxStates];
};

// The rule on n elements. It may prefetch beyond them, up to element `reach`.
template <class T>
inline void run_block(const StepArgs& a, const Block<T>& block, std::int64_t n, std::int64_t reach,
                      TelemetryLanes* lanes) {
  if (lanes == nullptr) {
    a.update(a.coefficients, a.scale, block.g, block.p, block.s, n, reach);
  } else {
    a.telemetry(a.coefficients, a.scale, block.raw, block.g, block.p, block.s, n, reach, *lanes);
  }
}

}  // namespace fusedstep::FUSEDSTEP_SET
