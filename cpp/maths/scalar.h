// Functions of one element. The library's own are inline functions that a debug build would emit once for all sets.
#pragma once

namespace fusedstep::FUSEDSTEP_SET {

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

inline float absolute(float x) { return __builtin_fabsf(x); }
inline double absolute(double x) { return __builtin_fabs(x); }

// NumPy's maximum and minimum: a NaN on either side stays. One selection after the other: the compiler vectorizes
// those.
template <class T>
inline T larger(T a, T b) {
  const T most = a > b ? a : b;
  return a != a ? a : most;
}
template <class T>
inline T smaller(T a, T b) {
  const T least = a < b ? a : b;
  return a != a ? a : least;
}

// 1, -1, and x itself where it is 0 or NaN.
template <class T>
inline T sign_of(T x) {
  const T negative = x < T(0) ? T(-1) : x;
  return x > T(0) ? T(1) : negative;
}

// a + weight (b - a)
template <class T>
inline T blend(T a, T b, T weight) {
  return a + weight * (b - a);
}

}  // namespace fusedstep::FUSEDSTEP_SET
