// Functions of one element. Those of the standard library are inline: a debug build would emit them out of line, and
// the linker would keep one copy for all instruction sets.
#pragma once

namespace fusedstep::FUSEDSTEP_SET {

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

inline float absolute(float x) { return __builtin_fabsf(x); }
inline double absolute(double x) { return __builtin_fabs(x); }

// NumPy's maximum and minimum: NaN where either side is NaN. Two selections one after the other, which the compiler
// vectorizes.
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

// 1 or -1; x itself where it is 0 or NaN.
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
