// What users add around a rule. Each stage is one plain loop over a block.
#pragma once

#include "kernels/table.h"

namespace fusedstep::FUSEDSTEP_SET {

// Unscaling and the sign of maximize in one factor, then coupled L2. Gives the gradient to use: `g` itself where there
// is nothing to do, for 0 * inf and the sign of 0 must not depend on an option that is off.
template <class T>
inline const T* gradient_stage(const StepArgs& a, const T* g, const T* p, std::int64_t n, T* scratch) {
  if (a.grad_factor != 1.0) {
    const T factor = T(a.grad_factor);
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) scratch[i] = factor * g[i];
    g = scratch;
  }
  if (a.decay != 0.0) {
    const T decay = T(a.decay);
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) scratch[i] = g[i] + decay * p[i];
    g = scratch;
  }
  return g;
}

template <class T>
inline void average_stage(const StepArgs& a, const T* p, T* ema, std::int64_t n) {
  // One factor: two that are rounded apart do not add up to 1, and the average would drift from what it averages.
  const T rest = T(1.0 - a.ema_decay);
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) ema[i] = ema[i] + rest * (p[i] - ema[i]);
}

}  // namespace fusedstep::FUSEDSTEP_SET
