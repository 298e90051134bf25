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
inline Block<T> load_block(const StepArgs& a, std::int64_t at, std::int64_t n, std::int64_t reach, T* g_scratch) {
  using Array = Codec<T, T>;
  Block<T> block;
  block.p = Array::load(a.param, at, n, nullptr);
  block.raw = Array::load(a.grad, at, n, nullptr);
  for (int k = 0; k < a.states; ++k) block.s[k] = Array::load(a.state[k], at, n, nullptr);
  block.g = gradient_stage(a, block.raw, block.p, n, reach, g_scratch);
  return block;
}

inline void states_at(const StepArgs& a, void* const* states, std::int64_t bytes, void** out) {
  for (int k = 0; k < a.states; ++k) out[k] = static_cast<char*>(states[k]) + bytes;
}

// Calls f(begin, end, sums) for each chunk.
template <class F>
inline void each_chunk(std::int64_t begin, std::int64_t end, double* sums, F f) {
  for (std::int64_t from = begin; from < end; from += kChunk, sums += kStepSums) {
    f(from, end - from < kChunk ? end : from + kChunk, sums);
  }
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
inline void step_blocks(const StepArgs& a, std::int64_t begin, std::int64_t end, std::int64_t reach,
                        TelemetryLanes* lanes) {
  alignas(64) T g_scratch[kBlock];
  for (std::int64_t at = begin; at < end; at += kBlock) {
    const std::int64_t n = end - at < kBlock ? end - at : kBlock;
    const Block<T> block = load_block<T>(a, at, n, reach - at, g_scratch);
    // A scratch gradient ends with the block; looking past it is harmless, its memory is never touched.
    if (lanes == nullptr) {
      a.update(a.coefficients, a.scale, block.g, block.p, block.s, n, reach - at);
    } else {
      a.watched(a.coefficients, a.scale, block.raw, block.g, block.p, block.s, n, reach - at, *lanes);
    }
    if (a.ema != nullptr) average_stage(a, block.p, Codec<T, T>::load(a.ema, at, n, nullptr), n, reach - at);
  }
}

template <class T>
void step(const StepArgs& a, std::int64_t begin, std::int64_t end, double* sums) {
  if (sums == nullptr) {
    if (a.grad_factor != 1.0 || a.decay != 0.0 || a.ema != nullptr) return step_blocks<T>(a, begin, end, end, nullptr);
    const Block<T> all = load_block<T>(a, begin, end - begin, end - begin, nullptr);
    return a.update(a.coefficients, a.scale, all.g, all.p, all.s, end - begin, end - begin);
  }
  each_chunk(begin, end, sums, [&](std::int64_t from, std::int64_t to, double* out) {
    TelemetryLanes lanes = {};
    step_blocks<T>(a, from, to, end, &lanes);
    out[kGradSquares] = lane_total(lanes.grad);
    out[kUpdateSquares] = lane_total(lanes.update);
    out[kParamSquares] = lane_total(lanes.param);
    out[kGradMoment] = lane_total(lanes.cross);
    out[kMomentSquares] = lane_total(lanes.moment);
    out[kNonFinite] = non_finite(static_cast<const T*>(a.grad), from, to, out[kGradSquares]);
  });
}

template <class T>
void gradient_sums(const StepArgs& a, std::int64_t begin, std::int64_t end, double* sums) {
  const T* g = static_cast<const T*>(a.grad);
  each_chunk(begin, end, sums, [&](std::int64_t from, std::int64_t to, double* out) {
    out[kGradSquares] = dot_of<T, true>(g, g, from, to, end);
    out[kNonFinite] = non_finite(g, from, to, out[kGradSquares]);
  });
}

template <class T>
void measure_sums(const StepArgs& a, std::int64_t begin, std::int64_t end, double* sums) {
  if (a.measures == 0) return;
  alignas(64) T g_scratch[kBlock];
  alignas(64) T terms[2 * kMaxMeasures][kStrip];
  void* const out[] = {terms[0], terms[1], terms[2], terms[3]};
  each_chunk(begin, end, sums, [&](std::int64_t from, std::int64_t to, double* of_chunk) {
    PairSum<T> totals[kMaxMeasures];
    for (std::int64_t at = from; at < to; at += kBlock) {
      const std::int64_t n = to - at < kBlock ? to - at : kBlock;
      const Block<T> block = load_block<T>(a, at, n, end - at, g_scratch);
      for (std::int64_t strip = 0; strip < n; strip += kStrip) {
        const std::int64_t l = n - strip < kStrip ? n - strip : kStrip;
        void* s[kMaxStates];
        states_at(a, block.s, strip * std::int64_t(sizeof(T)), s);
        a.measure(a.coefficients, block.g + strip, block.p + strip, s, out, l);
        for (int k = 0; k < a.measures; ++k) totals[k].add(terms[2 * k], terms[2 * k + 1], l);
      }
    }
    for (int k = 0; k < a.measures; ++k) of_chunk[k] = totals[k].total();
  });
}

}  // namespace fusedstep::FUSEDSTEP_SET
