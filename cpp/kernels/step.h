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

// The sums that telemetry takes of each block, next to the rule's work on it: where that waits for the divider, they
// cost little.
template <class T>
struct Telemetry {
  PairSum<T> grad, update, param, cross, moment;

  // Strips are short, so that the processor works on the sums of one and the rule of the next together.
  void run(const StepArgs& a, const Block<T>& block, std::int64_t n) {
    alignas(64) T before[kStrip];
    for (std::int64_t at = 0; at < n; at += kStrip) {
      const std::int64_t l = n - at < kStrip ? n - at : kStrip;
      T* p = block.p + at;
      void* s[kMaxStates];
      states_at(a, block.s, at * std::int64_t(sizeof(T)), s);
      for (std::int64_t i = 0; i < l; ++i) before[i] = p[i];
      a.update(a.coefficients, a.scale, block.g + at, p, s, l);
      const T* m = a.first_moment < 0 ? nullptr : static_cast<const T*>(s[a.first_moment]);
      each_half(l, [&](std::int64_t i, std::int64_t lanes, int half) FUSEDSTEP_LAMBDA {
        const Wide old = load_wide(before + i, lanes), fresh = load_wide(p + i, lanes);
        const Wide g = load_wide(block.raw + at + i, lanes);
        const Wide moved = {fresh.low - old.low, fresh.high - old.high};
        grad.add(g, g, half);
        // A difference of two floats need not be a float: its square is not exact.
        update.add_rounded(moved, moved, half);
        param.add(old, old, half);
        if (m != nullptr) {
          const Wide average = load_wide(m + i, lanes);
          cross.add(g, average, half);
          moment.add(average, average, half);
        }
      });
    }
  }

  void write(double* sums) const {
    sums[kGradSquares] = grad.total();
    sums[kUpdateSquares] = update.total();
    sums[kParamSquares] = param.total();
    sums[kGradMoment] = cross.total();
    sums[kMomentSquares] = moment.total();
  }
};

template <class T>
void step(const StepArgs& a, std::int64_t begin, std::int64_t end, double* sums) {
  if (a.grad_factor == 1.0 && a.decay == 0.0 && a.ema == nullptr && sums == nullptr) {
    const Block<T> all = load_block<T>(a, begin, end - begin, nullptr);
    a.update(a.coefficients, a.scale, all.g, all.p, all.s, end - begin);
    return;
  }
  alignas(64) T g_scratch[kBlock];
  Telemetry<T> telemetry;
  for (std::int64_t at = begin; at < end; at += kBlock) {
    const std::int64_t n = end - at < kBlock ? end - at : kBlock;
    const Block<T> block = load_block<T>(a, at, n, g_scratch);
    if (sums == nullptr) {
      a.update(a.coefficients, a.scale, block.g, block.p, block.s, n);
    } else {
      telemetry.run(a, block, n);
    }
    if (a.ema != nullptr) average_stage(a, block.p, Codec<T, T>::load(a.ema, at, n, nullptr), n);
  }
  if (sums == nullptr) return;
  telemetry.write(sums);
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
