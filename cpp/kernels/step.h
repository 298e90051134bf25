// The block pipeline of a step: load, gradient stage, rule, store, after stages. One for all rules.
#pragma once

#include "kernels/codec.h"
#include "kernels/pair_sum.h"
#include "kernels/stages.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class T>
struct Block {
  T* p;
  const T* raw;  // the gradient as it came
  const T* g;    // as the rule takes it
  void* s[kMaxStates];
};

template <class T>
inline Block<T> load_block(const StepArgs& a, std::int64_t at, std::int64_t n, T* g_scratch) {
  using Array = Codec<T, T>;
  Block<T> block;
  block.p = Array::load(a.param, at, n, nullptr);
  block.raw = Array::load(a.grad, at, n, nullptr);
  for (int k = 0; k < a.states; ++k) block.s[k] = Array::load(a.state[k], at, n, nullptr);
  block.g = gradient_stage(a, block.raw, block.p, n, g_scratch);
  return block;
}

inline void states_at(const StepArgs& a, void* const* states, std::int64_t bytes, void** out) {
  for (int k = 0; k < a.states; ++k) out[k] = static_cast<char*>(states[k]) + bytes;
}

// How many of x are infinite or NaN: none where the sum of their squares is finite.
template <class T>
inline double non_finite(const T* x, std::int64_t begin, std::int64_t end, double squares) {
  if (squares - squares == 0.0) return 0.0;
  std::int64_t count = 0;
  for (std::int64_t i = begin; i < end; ++i) count += x[i] - x[i] != T(0);
  return double(count);
}

template <class T>
void step(const StepArgs& a, std::int64_t begin, std::int64_t end, double* sums) {
  if (a.grad_factor == 1.0 && a.decay == 0.0 && a.ema == nullptr && sums == nullptr) {
    const Block<T> all = load_block<T>(a, begin, end - begin, nullptr);
    a.update(a.coefficients, a.scale, all.g, all.p, all.s, end - begin);
    return;
  }
  alignas(64) T g_scratch[kBlock];
  TelemetryLanes lanes = {};
  for (std::int64_t at = begin; at < end; at += kBlock) {
    const std::int64_t n = end - at < kBlock ? end - at : kBlock;
    const Block<T> block = load_block<T>(a, at, n, g_scratch);
    if (sums == nullptr) {
      a.update(a.coefficients, a.scale, block.g, block.p, block.s, n);
    } else {
      a.watched(a.coefficients, a.scale, block.raw, block.g, block.p, block.s, n, lanes);
    }
    if (a.ema != nullptr) average_stage(a, block.p, Codec<T, T>::load(a.ema, at, n, nullptr), n);
  }
  if (sums == nullptr) return;
  sums[kGradSquares] = lane_total(lanes.grad);
  sums[kUpdateSquares] = lane_total(lanes.update);
  sums[kParamSquares] = lane_total(lanes.param);
  sums[kGradMoment] = lane_total(lanes.cross);
  sums[kMomentSquares] = lane_total(lanes.moment);
  sums[kNonFinite] = non_finite(static_cast<const T*>(a.grad), begin, end, sums[kGradSquares]);
}

template <class T>
void gradient_sums(const StepArgs& a, std::int64_t begin, std::int64_t end, double* sums) {
  const T* g = static_cast<const T*>(a.grad);
  sums[kGradSquares] = dot<T>(g, g, begin, end);
  sums[kNonFinite] = non_finite(g, begin, end, sums[kGradSquares]);
}

template <class T>
void measure_sums(const StepArgs& a, std::int64_t begin, std::int64_t end, double* sums) {
  if (a.measures == 0) return;
  alignas(64) T g_scratch[kBlock];
  alignas(64) T terms[2 * kMaxMeasures][kStrip];
  void* const out[] = {terms[0], terms[1], terms[2], terms[3]};
  PairSum<T> totals[kMaxMeasures];
  for (std::int64_t at = begin; at < end; at += kBlock) {
    const std::int64_t n = end - at < kBlock ? end - at : kBlock;
    const Block<T> block = load_block<T>(a, at, n, g_scratch);
    for (std::int64_t strip = 0; strip < n; strip += kStrip) {
      const std::int64_t l = n - strip < kStrip ? n - strip : kStrip;
      void* s[kMaxStates];
      states_at(a, block.s, strip * std::int64_t(sizeof(T)), s);
      a.measure(a.coefficients, block.g + strip, block.p + strip, s, out, l);
      for (int k = 0; k < a.measures; ++k) totals[k].add(terms[2 * k], terms[2 * k + 1], l);
    }
  }
  for (int k = 0; k < a.measures; ++k) sums[k] = totals[k].total();
}

}  // namespace fusedstep::FUSEDSTEP_SET
