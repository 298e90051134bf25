// Sums of products, in double.
#pragma once

#include "kernels/abi/dtype.h"
#include "kernels/pack/ahead.h"
#include "kernels/pack/vectors.h"

namespace fusedstep::FUSEDSTEP_SET {

// sum + a * b. A product of two floats is exact in double, so that a fused multiply-add gives the same bits.
template <class T, class V>
FUSEDSTEP_INLINE V plus_product(V sum, V a, V b) {
  if constexpr (is_pair<V>) {
    return {plus_product<T>(sum.low, a.low, b.low), plus_product<T>(sum.high, a.high, b.high)};
  } else {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#elif defined(__FMA__)
    if constexpr (sizeof(T) == 4) return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
#elif defined(__ARM_NEON)
    if constexpr (sizeof(T) == 4) return (V)vfmaq_f64((float64x2_t)sum, (float64x2_t)a, (float64x2_t)b);
#endif
    return sum + a * b;
  }
}

template <class T>
inline void add_lanes(double* lanes, const T* more) {
  for (int lane = 0; lane < kSumLanes; lane += kLanes) {
    store(lanes + lane, load(lanes + lane) + load_wide(more + lane));
  }
}

inline double lane_total(const double* lanes) {
  static_assert(kSumLanes == 2 * kLanes);
  return LaneSum{{load(lanes), load(lanes + kLanes)}}.total();
}

template <class T>
struct PairSum {
  LaneSum lanes;

  FUSEDSTEP_INLINE PairSum() = default;
  FUSEDSTEP_INLINE explicit PairSum(const double* from) : lanes{{load(from), load(from + kLanes)}} {}
  FUSEDSTEP_INLINE void write(double* to) const {
    store(to, lanes.half[0]);
    store(to + kLanes, lanes.half[1]);
  }
  FUSEDSTEP_INLINE void add(Doubles a, Doubles b, int half) {
    lanes.half[half] = plus_product<T>(lanes.half[half], a, b);
  }
  // n is a multiple of the 32 lanes in every call but the last.
  FUSEDSTEP_INLINE void add(const T* a, const T* b, std::int64_t n) {
    each_half(n, [&](std::int64_t i, std::int64_t l, int half)
                     FUSEDSTEP_LAMBDA { add(load_wide(a + i, l), load_wide(b + i, l), half); });
  }
  FUSEDSTEP_INLINE double total() const { return lanes.total(); }
};

// How many elements ahead dot_of prefetches.
inline constexpr std::int64_t kDotAhead = 1024;

// Prefetches up to element `reach`. `Same`: y is x.
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

}  // namespace fusedstep::FUSEDSTEP_SET
