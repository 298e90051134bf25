// Softmax of rows, and what cross-entropy shares with it: e^(z - max z) and its sum.
#pragma once

#include "kernels/abi/loss.h"
#include "kernels/codec/narrow.h"
#include "kernels/pack/explog.h"

namespace fusedstep::FUSEDSTEP_SET {

// The terms of so many values are added in the dtype of the arithmetic; their sums are added in double.
inline constexpr std::int64_t kTermStrip = 4 * kLanes;

// Adds K terms of each value: four packs of a strip as (t0 + t1) + (t2 + t3), strips in 16 lanes of doubles.
// f(offset, lanes, terms) gives the terms of up to 16 values; the lanes behind them are ignored.
template <class V, int K, class F>
FUSEDSTEP_INLINE void add_terms(std::int64_t l, LaneSum (&sums)[K], F f) {
  std::int64_t i = 0;
  for (; i + kTermStrip <= l; i += kTermStrip) {
    // Two packs at a time, as registers are few.
    V near[K], far[K], t[K];
    f(i, std::int64_t(kLanes), near);
    f(i + kLanes, std::int64_t(kLanes), t);
    for (int j = 0; j < K; ++j) near[j] = near[j] + t[j];
    f(i + 2 * kLanes, std::int64_t(kLanes), far);
    f(i + 3 * kLanes, std::int64_t(kLanes), t);
    for (int j = 0; j < K; ++j) sums[j].half[0] = sums[j].half[0] + widen(near[j] + (far[j] + t[j]));
  }
  if (i == l) return;
  V t[4][K];
  for (int k = 0; k < 4; ++k) {
    const std::int64_t n = l - i - k * kLanes;
    if (n > 0) {
      f(i + k * kLanes, n < kLanes ? n : kLanes, t[k]);
      for (int j = 0; j < K; ++j) t[k][j] = first(t[k][j], n);
    } else {
      for (int j = 0; j < K; ++j) t[k][j] = spread<V>(0);
    }
  }
  for (int j = 0; j < K; ++j) {
    sums[j].half[0] = sums[j].half[0] + widen((t[0][j] + t[1][j]) + (t[2][j] + t[3][j]));
  }
}

// The largest of a row, NaN ignored; -inf of an empty row.
template <class T>
FUSEDSTEP_INLINE double row_max(const T* z, std::int64_t classes) {
  using V = typename Arithmetic<T>::Lanes;
  const V least = spread<V>(Lane<V>(-__builtin_inf()));
  V max[4] = {least, least, least, least};
  std::int64_t j = 0;
  for (; j + kTermStrip <= classes; j += kTermStrip) {
    for (int k = 0; k < 4; ++k) max[k] = larger(load(z + j + k * kLanes, kLanes), max[k]);
  }
  for (; j + kLanes <= classes; j += kLanes) max[0] = larger(load(z + j, kLanes), max[0]);
  const std::int64_t left = lanes_left(classes);
  if (left > 0) max[1] = larger(first(load(z + j, left), left, least), max[1]);
  return largest_lane(larger(larger(max[0], max[1]), larger(max[2], max[3])));
}

// The sum of e^(z_j - max) in two parts: `ties` counts the values that equal the maximum, each of which adds exactly 1;
// `rest` is the sum of the others. Where one class is nearly certain, `rest` keeps digits that the whole sum would
// lose.
struct RowSum {
  double ties, rest;

  double total() const { return ties + rest; }
};

// Counts the lanes of a row that are 0.
template <class V>
struct ZeroCount {
#if defined(__AVX512F__)
  std::int64_t count = 0;

  FUSEDSTEP_INLINE Floats without(Floats d, Floats e, std::int64_t n) {
    const __mmask16 other = _mm512_cmp_ps_mask((__m512)d, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    count += n - __builtin_popcount(other & lane_bits(n));
    return (Floats)_mm512_maskz_mov_ps(other, (__m512)e);
  }
  FUSEDSTEP_INLINE Doubles without(Doubles d, Doubles e, std::int64_t n) {
    const __mmask8 low = _mm512_cmp_pd_mask((__m512d)d.low, _mm512_setzero_pd(), _CMP_NEQ_UQ);
    const __mmask8 high = _mm512_cmp_pd_mask((__m512d)d.high, _mm512_setzero_pd(), _CMP_NEQ_UQ);
    count += n - __builtin_popcount((unsigned(low) | unsigned(high) << 8) & lane_bits(n));
    using Half = decltype(e.low);
    return {(Half)_mm512_maskz_mov_pd(low, (__m512d)e.low), (Half)_mm512_maskz_mov_pd(high, (__m512d)e.high)};
  }
  double total() const { return double(count); }
#else
  using Counts = decltype(V() == V());
  Counts lanes = {};

  // e where d is not 0, else 0; counts the latter.
  FUSEDSTEP_INLINE V without(V d, V e, std::int64_t n) {
    const Counts zero = d == spread<V>(0);
    lanes = lanes - first(zero, n);
    return where_not(zero, e);
  }
  double total() const { return double(sum_of_lanes(lanes)); }
#endif
};

// Writes e^(z_j - max) and adds it up; terms(offset, lanes, d, t) gives K - 1 further terms from d = z - max.
template <class T, int K, class F>
FUSEDSTEP_INLINE RowSum row_exponentials(const T* z, double max, std::int64_t classes,
                                         typename Arithmetic<T>::Scalar* out, LaneSum (&sums)[K], F terms) {
  using V = typename Arithmetic<T>::Lanes;
  const V top = spread<V>(Lane<V>(max));
  ZeroCount<V> ties;
  add_terms<V>(classes, sums, [&](std::int64_t i, std::int64_t n, V(&t)[K]) FUSEDSTEP_LAMBDA {
    // Prefetches the next row.
    __builtin_prefetch(z + classes + i);
    if (sizeof(T) == sizeof(double)) __builtin_prefetch(z + classes + i + kLanes / 2);
    const V d = load(z + i, n) - top;
    const V e = exponential_below(d);
    store(out + i, e, n);
    t[0] = ties.without(d, e, n);
    terms(i, n, d, t);
  });
  return {ties.total(), sums[0].total()};
}

template <class T, bool Log>
void softmax(const SoftmaxArgs& a, void* scratch, std::int64_t begin, std::int64_t end) {
  using S = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Lanes;
  auto* e = static_cast<S*>(scratch);
  for (std::int64_t row = begin; row < end; ++row) {
    const T* z = static_cast<const T*>(a.logits) + row * a.classes;
    T* out = static_cast<T*>(a.out) + row * a.classes;
    const double max = row_max(z, a.classes);
    LaneSum sums[1];
    const RowSum sum =
        row_exponentials(z, max, a.classes, e, sums, [](std::int64_t, std::int64_t, V, V(&)[1]) FUSEDSTEP_LAMBDA {});
    if constexpr (Log) {
      const V top = spread<V>(S(max)), shift = spread<V>(S(log_of_sum(sum.ties, sum.rest)));
      write_lanes(out, a.classes, a.stream,
                  [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA { return (load(z + i, n) - top) - shift; });
    } else {
      const S factor = S(1.0 / sum.total());
      write_lanes(out, a.classes, a.stream,
                  [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA { return load(e + i, n) * factor; });
    }
  }
  if (a.stream) end_stream();
}

}  // namespace fusedstep::FUSEDSTEP_SET
