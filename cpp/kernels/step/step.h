// The block pipeline of a step: load, gradient stage, rule, store, after stages. One for all rules.
#pragma once

#include "kernels/pack/pair_sum.h"
#include "kernels/step/coded_run.h"

namespace fusedstep::FUSEDSTEP_SET {

// Calls f(begin, end, sums) for each chunk.
template <class F>
inline void each_chunk(std::int64_t begin, std::int64_t end, double* sums, F f) {
  for (std::int64_t from = begin; from < end; from += kChunk, sums += kStepSums) {
    f(from, end - from < kChunk ? end : from + kChunk, sums);
  }
}

// How many of x are infinite or NaN. There are none where the sum of their squares is finite.
template <class T>
inline double non_finite(const T* x, std::int64_t begin, std::int64_t end, double squares) {
  if (squares - squares == 0.0) return 0.0;
  std::int64_t count = 0;
  for (std::int64_t i = begin; i < end; ++i) count += x[i] - x[i] != T(0);
  return double(count);
}

template <class T>
inline Block<T> block_at(const StepArgs& a, std::int64_t at, std::int64_t n, std::int64_t reach, T* g_scratch) {
  Block<T> block;
  block.p = static_cast<T*>(a.param) + at;
  block.raw = static_cast<const T*>(a.grad) + at;
  for (int k = 0; k < a.states; ++k) block.s[k] = static_cast<T*>(a.state[k]) + at;
  block.g = gradient_stage(a, block.raw, block.p, n, reach, g_scratch);
  return block;
}

template <class T>
inline void run_blocks(const StepArgs& a, std::int64_t begin, std::int64_t end, std::int64_t reach,
                       TelemetryLanes* lanes) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (a.coded) {
      static thread_local Rounding rounding;
      return CodedRun(a, begin, end, rounding).run(reach, lanes);
    }
  }
  alignas(64) T g_scratch[kBlock];
  for (std::int64_t at = begin; at < end; at += kBlock) {
    // Beyond a block the scratch gradient ends; a prefetch there is harmless.
    const std::int64_t n = end - at < kBlock ? end - at : kBlock;
    const Block<T> block = block_at(a, at, n, reach - at, g_scratch);
    run_block(a, block, n, reach - at, lanes);
    if (a.ema != nullptr) average_stage(a, block.p, static_cast<T*>(a.ema) + at, n, reach - at);
  }
}

template <class T>
inline const T* gradient_of(const StepArgs& a, std::int64_t begin, std::int64_t end, T* scratch) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (a.grad_dtype != Dtype::float32) {
      decode(a.grad_dtype, a.grad, 0.0f, begin, end - begin, scratch);
      return scratch;
    }
  }
  return static_cast<const T*>(a.grad) + begin;
}

template <class T>
void step(const StepArgs& a, std::int64_t begin, std::int64_t end, double* sums) {
  if (sums == nullptr) {
    if (a.coded || a.grad_factor != 1.0 || a.decay != 0.0 || a.ema != nullptr) {
      return run_blocks<T>(a, begin, end, end, nullptr);
    }
    const Block<T> all = block_at<T>(a, begin, end - begin, end - begin, nullptr);
    return a.update(a.coefficients, a.scale, all.g, all.p, all.s, end - begin, end - begin);
  }
  each_chunk(begin, end, sums, [&](std::int64_t from, std::int64_t to, double* out) {
    TelemetryLanes lanes = {};
    run_blocks<T>(a, from, to, end, &lanes);
    out[kGradSquares] = lane_total(lanes.grad);
    out[kUpdateSquares] = lane_total(lanes.update);
    out[kParamSquares] = lane_total(lanes.param);
    out[kGradMoment] = lane_total(lanes.cross);
    out[kMomentSquares] = lane_total(lanes.moment);
    T scratch[kChunk];
    const T* g = gradient_of(a, from, to, scratch);
    out[kNonFinite] = non_finite(g, 0, to - from, out[kGradSquares]);
  });
}

template <class T>
void gradient_sums(const StepArgs& a, std::int64_t begin, std::int64_t end, double* sums) {
  const bool coded = a.grad_dtype != maths_dtype(a.grad_dtype);
  alignas(64) T scratch[kChunk];
  each_chunk(begin, end, sums, [&](std::int64_t from, std::int64_t to, double* out) {
    const T* g = gradient_of(a, from, to, scratch);
    out[kGradSquares] = dot_of<T, true>(g, g, 0, to - from, (coded ? to : end) - from);
    out[kNonFinite] = non_finite(g, 0, to - from, out[kGradSquares]);
  });
}

template <class T>
void measure_sums(const StepArgs& a, std::int64_t begin, std::int64_t end, double* sums) {
  if (a.measures == 0) return;
  Strip decoded;
  alignas(64) T g_scratch[kStrip];
  alignas(64) T terms[2 * kMaxMeasures][kStrip];
  void* const out[] = {terms[0], terms[1], terms[2], terms[3]};
  each_chunk(begin, end, sums, [&](std::int64_t from, std::int64_t to, double* of_chunk) {
    PairSum<T> totals[kMaxMeasures];
    for (std::int64_t at = from; at < to; at += kStrip) {
      const std::int64_t n = to - at < kStrip ? to - at : kStrip;
      const Block<T> block = [&] {
        if constexpr (sizeof(T) == sizeof(float)) {
          if (a.coded) {
            start_strip(a, at, n, decoded);
            decode_values(a, decoded);
            decode_states(a, decoded);
            return block_of(a, decoded, g_scratch);
          }
        }
        return block_at(a, at, n, end - at, g_scratch);
      }();
      a.measure(a.coefficients, block.g, block.p, block.s, out, n);
      for (int k = 0; k < a.measures; ++k) totals[k].add(terms[2 * k], terms[2 * k + 1], n);
    }
    for (int k = 0; k < a.measures; ++k) of_chunk[k] = totals[k].total();
  });
}

}  // namespace fusedstep::FUSEDSTEP_SET
