#pragma once

namespace fusedstep::FUSEDSTEP_SET {

// The compiler's own square root: std::sqrt is an inline function that a debug build would emit once for all sets.
inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

}  // namespace fusedstep::FUSEDSTEP_SET
