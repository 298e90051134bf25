// The block pipeline of a step: load, gradient stage, rule, store, after stages.
#pragma once

#include <utility>

#include "kernels/codec.h"
#include "kernels/stages.h"

namespace fusedstep::FUSEDSTEP_SET {

// The rule on n elements. It works on locals: through references into the arrays the compiler would reload.
template <class Rule, int V, class T, int... S>
inline void update_elements(const typename Rule::template Coefficients<T>& c, const T* g, T* p, T* const* states,
                            std::int64_t n, std::integer_sequence<int, S...>) {
  T* const s[] = {states[S]..., nullptr};
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    T x = p[i];
    T local[] = {s[S][i]..., T()};
    Rule::template update<V>(c, g[i], x, local[S]...);
    p[i] = x;
    ((s[S][i] = local[S]), ...);
  }
}

template <class Rule, int V, class T>
void step(const StepArgs& a, std::int64_t begin, std::int64_t end) {
  using Array = Codec<T, T>;
  constexpr int states = __builtin_popcount(Rule::keeps[V]);
  constexpr auto each_state = std::make_integer_sequence<int, states>();
  const auto c = *static_cast<const typename Rule::template Coefficients<T>*>(a.coefficients);

  const bool plain = a.grad_factor == 1.0 && a.decay == 0.0 && a.ema == nullptr;
  const std::int64_t block = plain ? end - begin : kBlock;
  alignas(64) T g_scratch[kBlock];
  for (std::int64_t at = begin; at < end; at += block) {
    const std::int64_t n = end - at < block ? end - at : block;
    T* p = Array::load(a.param, at, n, nullptr);
    T* s[states + 1];
    int kept = 0;
    for (int k = 0; k < kMaxStates; ++k) {
      if (Rule::keeps[V] >> k & 1) s[kept++] = Array::load(a.state[k], at, n, nullptr);
    }
    const T* g = gradient_stage(a, Array::load(a.grad, at, n, nullptr), p, n, g_scratch);

    update_elements<Rule, V>(c, g, p, s, n, each_state);

    kept = 0;
    for (int k = 0; k < kMaxStates; ++k) {
      if (Rule::keeps[V] >> k & 1) Array::store(a.state[k], at, n, s[kept++]);
    }
    Array::store(a.param, at, n, p);
    if (a.ema != nullptr) {
      T* ema = Array::load(a.ema, at, n, nullptr);
      average_stage(a, p, ema, n);
      Array::store(a.ema, at, n, ema);
    }
  }
}

}  // namespace fusedstep::FUSEDSTEP_SET
