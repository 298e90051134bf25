// The loops that are compiled for each rule. What goes on around them, once for all rules, is in step.h.
#pragma once

#include <utility>

#include "kernels/abi/step.h"
#include "kernels/pack/ahead.h"
#include "kernels/pack/pair_sum.h"
#include "kernels/pack/vectors.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class Rule, int V>
constexpr auto kept_states = std::make_integer_sequence<int, __builtin_popcount(Rule::keeps[V])>();

// One element. A rule either updates the parameter, or gives the direction that is subtracted from it after a decoupled
// decay. Cautious: components that point against the gradient become 0, and the others are scaled.
template <class Rule, int V, bool Cautious, class T, class... State>
FUSEDSTEP_INLINE void update_element(const typename Rule::template Coefficients<T>& c, T scale, T g, T& p,
                                     State&... states) {
  if constexpr (requires { Rule::template direction<V>(c, g, p, states...); }) {
    T move = Rule::template direction<V>(c, g, p, states...);
    if constexpr (Cautious) move = move * g > T(0) ? scale * move : T(0);
    if constexpr (requires { c.keep; }) p = c.keep * p;
    p = p - move;
  } else {
    Rule::template update<V>(c, g, p, states...);
  }
}

// How many elements ahead a rule prefetches.
inline constexpr std::int64_t kAhead = 512;

template <class T, int... S>
FUSEDSTEP_INLINE void look_ahead(const T* g, const T* p, [[maybe_unused]] T* const* states, std::int64_t from,
                                 std::int64_t reach, std::integer_sequence<int, S...>) {
  if (from >= reach) return;
  fetch<false>(g + from);
  fetch<true>(p + from);
  (fetch<true>(states[S] + from), ...);
}

// The rule works on local copies: with references into the arrays the compiler would reload after every store.
template <class Rule, int V, bool Cautious, class T, int... S>
FUSEDSTEP_INLINE void update_elements(const typename Rule::template Coefficients<T>& c, T scale, const T* g, T* p,
                                      void* const* states, std::int64_t n, std::int64_t reach,
                                      std::integer_sequence<int, S...> each) {
  T* const s[] = {static_cast<T*>(states[S])..., nullptr};
  const auto element = [&](std::int64_t i) FUSEDSTEP_LAMBDA {
    T x = p[i];
    T local[] = {s[S][i]..., T()};
    update_element<Rule, V, Cautious>(c, scale, g[i], x, local[S]...);
    p[i] = x;
    ((s[S][i] = local[S]), ...);
  };
  each_element(n, [&](std::int64_t i) FUSEDSTEP_LAMBDA { look_ahead(g, p, s, i + kAhead, reach, each); }, element);
}

template <class Rule, int V, bool Cautious, class T>
void update_loop(const void* coefficients, double scale, const void* g, void* p, void* const* states, std::int64_t n,
                 std::int64_t reach) {
  const auto c = *static_cast<const typename Rule::template Coefficients<T>*>(coefficients);
  update_elements<Rule, V, Cautious, T>(c, T(scale), static_cast<const T*>(g), static_cast<T*>(p), states, n, reach,
                                        kept_states<Rule, V>);
}

// Where the first moment is among the states of a variant, or -1.
template <class Rule, int V>
constexpr int moment_place() {
  if constexpr (Rule::first_moment < 0) {
    return -1;
  } else {
    constexpr unsigned keeps = Rule::keeps[V], bit = 1u << Rule::first_moment;
    return (keeps & bit) == 0 ? -1 : __builtin_popcount(keeps & (bit - 1));
  }
}

// The update, and the sums of telemetry. Within a strip they are added in T, and strips in double: a conversion costs
// as much as two products. The sums cost little where the rule waits for the divider.
template <class Rule, int V, bool Cautious, class T, int... S>
FUSEDSTEP_INLINE void telemetry_elements(const typename Rule::template Coefficients<T>& c, T scale, const T* raw,
                                         const T* g, T* p, void* const* states, std::int64_t n, std::int64_t reach,
                                         TelemetryLanes& lanes, std::integer_sequence<int, S...> each) {
  static_assert(kStride == kSumLanes && kStrip % kStride == 0);
  constexpr int moment = moment_place<Rule, V>();
  T* const s[] = {static_cast<T*>(states[S])..., nullptr};
  PairSum<T> grad(lanes.grad);
  for (std::int64_t strip = 0; strip < n; strip += kStrip) {
    const std::int64_t end = n - strip < kStrip ? n : strip + kStrip;
    alignas(64) T update[kSumLanes], param[kSumLanes], cross[kSumLanes], square[kSumLanes];
    clear(update);
    clear(param);
    if constexpr (moment >= 0) {
      clear(cross);
      clear(square);
    }
    const auto element = [&](std::int64_t i, std::int64_t lane) FUSEDSTEP_LAMBDA {
      const T before = p[i];
      T x = before;
      T local[] = {s[S][i]..., T()};
      update_element<Rule, V, Cautious>(c, scale, g[i], x, local[S]...);
      p[i] = x;
      ((s[S][i] = local[S]), ...);
      const T moved = x - before;
      update[lane] = update[lane] + moved * moved;
      param[lane] = param[lane] + before * before;
      if constexpr (moment >= 0) {
        cross[lane] = cross[lane] + raw[i] * local[moment];
        square[lane] = square[lane] + local[moment] * local[moment];
      }
    };
    std::int64_t i = strip;
    for (; i + kStride <= end; i += kStride) {
      look_ahead(g, p, s, i + kAhead, reach, each);
#pragma omp simd
      for (std::int64_t lane = 0; lane < kStride; ++lane) element(i + lane, lane);
      grad.add(raw + i, raw + i, kStride);
    }
    if (i < end) {
      for (std::int64_t lane = 0; i + lane < end; ++lane) element(i + lane, lane);
      grad.add(raw + i, raw + i, end - i);
    }
    add_lanes(lanes.update, update);
    add_lanes(lanes.param, param);
    if constexpr (moment >= 0) {
      add_lanes(lanes.cross, cross);
      add_lanes(lanes.moment, square);
    }
  }
  grad.write(lanes.grad);
}

template <class Rule, int V, bool Cautious, class T>
void telemetry_loop(const void* coefficients, double scale, const void* raw, const void* g, void* p,
                    void* const* states, std::int64_t n, std::int64_t reach, TelemetryLanes& lanes) {
  const auto c = *static_cast<const typename Rule::template Coefficients<T>*>(coefficients);
  telemetry_elements<Rule, V, Cautious, T>(c, T(scale), static_cast<const T*>(raw), static_cast<const T*>(g),
                                           static_cast<T*>(p), states, n, reach, lanes, kept_states<Rule, V>);
}

// The terms of a rule's measure. Cautious: 1 for each component that points along the gradient.
template <class Rule, int V, bool Cautious, class T, int... S>
FUSEDSTEP_INLINE void measure_elements(const typename Rule::template Coefficients<T>& c, const T* g, const T* p,
                                       void* const* states, void* const* out, std::int64_t n,
                                       std::integer_sequence<int, S...>) {
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
