// What users add around a rule. Each stage is one plain loop over a block.
#pragma once

#include "kernels/abi/step.h"
#include "kernels/pack/ahead.h"

namespace fusedstep::FUSEDSTEP_SET {

// One factor (for unscaling, clipping and the sign of maximize), then coupled L2. Gives the gradient to use: `g` itself
// where both are off, so that options that are off change neither infinities nor the sign of 0. Meanwhile it prefetches
// the gradient of the next block, up to element `reach`.
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

// ema <- ema + (1 - decay) (p - ema). With two factors, each rounded, that do not add up to 1 the average would drift.
template <class T>
inline void average_stage(const StepArgs& a, const T* p, T* ema, std::int64_t n, std::int64_t reach) {
  const T rest = T(1.0 - a.ema_decay);
  const auto ahead = [=](std::int64_t i) FUSEDSTEP_LAMBDA {
    if (i + kBlock < reach) fetch<true>(ema + i + kBlock);
  };
  each_element(n, ahead, [=](std::int64_t i) FUSEDSTEP_LAMBDA { ema[i] = ema[i] + rest * (p[i] - ema[i]); });
}

}  // namespace fusedstep::FUSEDSTEP_SET
