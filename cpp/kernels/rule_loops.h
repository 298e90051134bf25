// A rule's own loops: all that is compiled per rule. What goes on around them is in step.h, once for all rules.
#pragma once

#include <utility>

#include "kernels/table.h"
#include "kernels/vector.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class Rule, int V>
constexpr auto kept_states = std::make_integer_sequence<int, __builtin_popcount(Rule::keeps[V])>();

// One element. A rule updates the parameter itself, or gives the direction that is taken off it, after a decoupled
// decay. Cautious: a component against the gradient is left out, and the others are scaled.
template <class Rule, int V, bool Cautious, class T, class... State>
FUSEDSTEP_INLINE void update_element(const typename Rule::template Coefficients<T>& c, T scale, T g, T& p, State&... states) {
  if constexpr (requires { Rule::template direction<V>(c, g, p, states...); }) {
    T move = Rule::template direction<V>(c, g, p, states...);
    if constexpr (Cautious) move = move * g > T(0) ? scale * move : T(0);
    if constexpr (requires { c.keep; }) p = c.keep * p;
    p = p - move;
  } else {
    Rule::template update<V>(c, g, p, states...);
  }
}

// Works on locals: through references into the arrays the compiler would reload.
template <class Rule, int V, bool Cautious, class T, int... S>
FUSEDSTEP_INLINE void update_elements(const typename Rule::template Coefficients<T>& c, T scale, const T* g, T* p,
                            void* const* states, std::int64_t n, std::integer_sequence<int, S...>) {
  T* const s[] = {static_cast<T*>(states[S])..., nullptr};
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    T x = p[i];
    T local[] = {s[S][i]..., T()};
    update_element<Rule, V, Cautious>(c, scale, g[i], x, local[S]...);
    p[i] = x;
    ((s[S][i] = local[S]), ...);
  }
}

template <class Rule, int V, bool Cautious, class T>
void update_loop(const void* coefficients, double scale, const void* g, void* p, void* const* states, std::int64_t n) {
  const auto c = *static_cast<const typename Rule::template Coefficients<T>*>(coefficients);
  update_elements<Rule, V, Cautious, T>(c, T(scale), static_cast<const T*>(g), static_cast<T*>(p), states, n,
                                        kept_states<Rule, V>);
}

// Cautious: how many components go with the gradient.
template <class Rule, int V, bool Cautious, class T, int... S>
FUSEDSTEP_INLINE void measure_elements(const typename Rule::template Coefficients<T>& c, const T* g, const T* p,
                             void* const* states, void* const* out, std::int64_t n, std::integer_sequence<int, S...>) {
  static_assert(Rule::sums <= kMaxMeasures);
  const T* const s[] = {static_cast<const T*>(states[S])..., nullptr};
  T *a0 = static_cast<T*>(out[0]), *b0 = static_cast<T*>(out[1]);
  T *a1 = static_cast<T*>(out[2]), *b1 = static_cast<T*>(out[3]);
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    T local[] = {s[S][i]..., T()};
    T x0, y0, x1 = T(0), y1 = T(0);
    if constexpr (Cautious) {
      const T move = Rule::template direction<V>(c, g[i], p[i], local[S]...);
      x0 = move * g[i] > T(0) ? T(1) : T(0);
      y0 = T(1);
    } else {
      Rule::template measure<V>(c, x0, y0, x1, y1, g[i], p[i], local[S]...);
    }
    a0[i] = x0;
    b0[i] = y0;
    if constexpr (!Cautious && Rule::sums > 1) {
      a1[i] = x1;
      b1[i] = y1;
    }
  }
}

template <class Rule, int V, bool Cautious, class T>
void measure_loop(const void* coefficients, const void* g, const void* p, void* const* states, void* const* out,
                  std::int64_t n) {
  const auto c = *static_cast<const typename Rule::template Coefficients<T>*>(coefficients);
  measure_elements<Rule, V, Cautious, T>(c, static_cast<const T*>(g), static_cast<const T*>(p), states, out, n,
                                         kept_states<Rule, V>);
}

}  // namespace fusedstep::FUSEDSTEP_SET
