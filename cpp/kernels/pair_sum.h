// Sums of products, in double.
#pragma once

#include "kernels/ahead.h"
#include "kernels/table.h"
#include "kernels/vector.h"

namespace fusedstep::FUSEDSTEP_SET {

// sum + a * b. A product of two floats is exact in double, so that a fused multiply-add gives the same bits.
template <class T>
FUSEDSTEP_INLINE Doubles plus_product(Doubles sum, Doubles a, Doubles b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#elif defined(__FMA__)
  if constexpr (sizeof(T) == 4) {
    __m256d x[2], y[2], z[2];
    __builtin_memcpy(x, &a, sizeof a);
    __builtin_memcpy(y, &b, sizeof b);
    __builtin_memcpy(z, &sum, sizeof sum);
    for (int i = 0; i < 2; ++i) z[i] = _mm256_fmadd_pd(x[i], y[i], z[i]);
    __builtin_memcpy(&sum, z, sizeof sum);
    return sum;
  }
#endif
  return sum + a * b;
}

template <class T>
inline void add_lanes(double* lanes, const T* more) {
#pragma omp simd
  for (int lane = 0; lane < kSumLanes; ++lane) lanes[lane] += double(more[lane]);
}

inline double lane_total(const double* lanes) {
  LaneSum sum;
  static_assert(sizeof sum.half == kSumLanes * sizeof(double));
  __builtin_memcpy(sum.half, lanes, sizeof sum.half);
  return sum.total();
}

template <class T>
struct PairSum {
  LaneSum lanes;

  FUSEDSTEP_INLINE PairSum() = default;
  FUSEDSTEP_INLINE explicit PairSum(const double* from) { __builtin_memcpy(lanes.half, from, sizeof lanes.half); }
  FUSEDSTEP_INLINE void write(double* to) const { __builtin_memcpy(to, lanes.half, sizeof lanes.half); }
  FUSEDSTEP_INLINE void add(Wide a, Wide b, int half) {
    lanes.half[half].low = plus_product<T>(lanes.half[half].low, a.low, b.low);
    lanes.half[half].high = plus_product<T>(lanes.half[half].high, a.high, b.high);
  }
  // n is a multiple of the 32 lanes, but in the last call.
  FUSEDSTEP_INLINE void add(const T* a, const T* b, std::int64_t n) {
    each_half(n, [&](std::int64_t i, std::int64_t l, int half)
                     FUSEDSTEP_LAMBDA { add(load_wide(a + i, l), load_wide(b + i, l), half); });
  }
  FUSEDSTEP_INLINE double total() const { return lanes.total(); }
};

// How many elements it looks ahead.
inline constexpr std::int64_t kDotAhead = 1024;

// Fetches up to `reach`; `Same`: y is x.
template <class T, bool Same>
FUSEDSTEP_INLINE double dot_of(const T* x, const T* y, std::int64_t begin, std::int64_t end, std::int64_t reach) {
  PairSum<T> sum;
  for (std::int64_t i = begin; i < end; i += kStride) {
    if (i + kDotAhead < reach) {
      fetch<false>(x + i + kDotAhead);
      if constexpr (!Same) fetch<false>(y + i + kDotAhead);
    }
    sum.add(x + i, y + i, end - i < kStride ? end - i : kStride);
  }
  return sum.total();
}

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

}  // namespace fusedstep::FUSEDSTEP_SET
