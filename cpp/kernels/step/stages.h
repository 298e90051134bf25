// What users add around a rule. Each stage is one plain loop over a block.
#pragma once

#include "kernels/abi/step.h"
#include "kernels/pack/ahead.h"

namespace fusedstep::FUSEDSTEP_SET {

// Unscaling, clipping and the sign of maximize in one factor, then coupled L2. Gives the gradient to use: `g` itself
// where there is nothing to do, for 0 * inf and the sign of 0 must not depend on an option that is off. Meanwhile the
// gradient of the next block is fetched, up to `reach` elements.
template <class T>
inline const T* gradient_stage(const StepArgs& a, const T* g, const T* p, std::int64_t n, std::int64_t reach,
                               T* scratch) {
  const T* raw = g;
  const auto ahead = [=](std::int64_t i) FUSEDSTEP_LAMBDA {
    if (i + kBlock < reach) fetch<false>(raw + i + kBlock);
  };
  if (a.grad_factor != 1.0) {
    const T factor = T(a.grad_factor);
    each_element(n, ahead, [=](std::int64_t i) FUSEDSTEP_LAMBDA { scratch[i] = factor * raw[i]; });
    g = scratch;
  }
  if (a.decay != 0.0) {
    const T decay = T(a.decay);
    const T* scaled = g;
    each_element(n, ahead, [=](std::int64_t i) FUSEDSTEP_LAMBDA { scratch[i] = scaled[i] + decay * p[i]; });
    g = scratch;
  }
  return g;
}

// One factor: two that are rounded apart do not add up to 1, and the average would drift from what it averages.
template <class T>
inline void average_stage(const StepArgs& a, const T* p, T* ema, std::int64_t n, std::int64_t reach) {
  const T rest = T(1.0 - a.ema_decay);
  const auto ahead = [=](std::int64_t i) FUSEDSTEP_LAMBDA {
    if (i + kBlock < reach) fetch<true>(ema + i + kBlock);
  };
  each_element(n, ahead, [=](std::int64_t i) FUSEDSTEP_LAMBDA { ema[i] = ema[i] + rest * (p[i] - ema[i]); });
}

}  // namespace fusedstep::FUSEDSTEP_SET
