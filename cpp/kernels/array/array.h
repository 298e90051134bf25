// Loops over whole arrays.
#pragma once

#include "kernels/codec/narrow.h"
#include "kernels/pack/explog.h"
#include "kernels/pack/pair_sum.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class T>
inline double dot(const void* x, const void* y, std::int64_t begin, std::int64_t end) {
  return dot_of<T, false>(static_cast<const T*>(x), static_cast<const T*>(y), begin, end, end);
}

template <class T>
inline void axpy(double a, const void* x, void* y, std::int64_t begin, std::int64_t end) {
  const T factor = T(a);
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(y);
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) to[i] = to[i] + factor * from[i];
}

// In 32 lanes, as every sum here.
inline double sum(const double* x, std::int64_t n) {
  LaneSum lanes;
  each_half(n, [&](std::int64_t i, std::int64_t l, int half)
                   FUSEDSTEP_LAMBDA { lanes.half[half] = lanes.half[half] + load(x + i, l); });
  return lanes.total();
}

template <class T>
inline void narrow(const float* from, void* to, std::int64_t n) {
  encode_block(from, static_cast<T*>(to), n, false);
}

// A function of every element.
template <Floats (*F)(Floats)>
void map(const float* x, float* out, std::int64_t n) {
  each_lanes(
      n, [&](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA { store(out + i, F(load(x + i, lanes)), lanes); });
}

}  // namespace fusedstep::FUSEDSTEP_SET
