// Reductions over lanes: the upper half joins the lower one, until one lane is left.
#pragma once

#include "kernels/pack/convert.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class V, class F>
FUSEDSTEP_INLINE Lane<V> meet(V v, F f) {
  if constexpr (is_pair<V> || sizeof(V) > 16) {
    return meet(f(lower(v), upper(v)), f);
  } else if constexpr (lanes_of<V> == 2) {
    return f(v, __builtin_shufflevector(v, v, 1, 1))[0];
  } else {
    static_assert(lanes_of<V> == 4);
    v = f(v, __builtin_shufflevector(v, v, 2, 3, 2, 3));
    return f(v, __builtin_shufflevector(v, v, 1, 1, 1, 1))[0];
  }
}
template <class V>
FUSEDSTEP_INLINE Lane<V> lowest(V v) {
  if constexpr (is_pair<V>) {
    return lowest(v.low);
  } else {
    return v[0];
  }
}
template <class V>
FUSEDSTEP_INLINE Lane<V> sum_of_lanes(V v) {
  return meet(v, [](auto a, auto b) FUSEDSTEP_LAMBDA { return a + b; });
}
// Passing over NaN.
template <class V>
FUSEDSTEP_INLINE Lane<V> largest_lane(V v) {
  return meet(v, [](auto a, auto b) FUSEDSTEP_LAMBDA { return larger(a, b); });
}

// A sum of doubles in 32 lanes: value i goes to lane i mod 32; the lanes meet in a fixed tree.
struct LaneSum {
  Doubles half[2] = {};

  FUSEDSTEP_INLINE double total() const { return sum_of_lanes(half[0] + half[1]); }
};

}  // namespace fusedstep::FUSEDSTEP_SET
