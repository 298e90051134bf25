// Sixteen lanes, whatever the processor: the compiler splits them into its own vectors, and every set adds in the same
// order. Functions here are inlined always, so a vector never crosses a call.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define FUSEDSTEP_INLINE inline __attribute__((always_inline))
#define FUSEDSTEP_LAMBDA __attribute__((always_inline))

namespace fusedstep::FUSEDSTEP_SET {

inline constexpr int kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef std::int32_t Ints __attribute__((vector_size(64)));
typedef double Doubles __attribute__((vector_size(64)));
typedef std::int64_t Longs __attribute__((vector_size(64)));

// Sixteen doubles.
struct Wide {
  Doubles low, high;
};
// GCC 12 does not take {} for one everywhere.
FUSEDSTEP_INLINE Wide zeros() { return {Doubles{}, Doubles{}}; }

// Bits of the first n lanes.
FUSEDSTEP_INLINE unsigned lane_bits(std::int64_t n) { return n >= kLanes ? 0xffffu : (1u << n) - 1u; }

// n items of the type, one by one. Not inlined: a loop's remainder would be longer than the loop.
template <class T>
__attribute__((noinline)) void copy_items(T* to, const T* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i];
}

FUSEDSTEP_INLINE Floats load(const float* p) {
  Floats v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// The first n lanes; zeros behind them.
FUSEDSTEP_INLINE Floats load(const float* p, std::int64_t n) {
  if (n >= kLanes) return load(p);
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_loadu_ps(__mmask16(lane_bits(n)), p);
#else
  alignas(64) float part[kLanes] = {};
  copy_items(part, p, n);
  return load(part);
#endif
}

FUSEDSTEP_INLINE void store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof v); }

FUSEDSTEP_INLINE void store(float* p, Floats v, std::int64_t n) {
  if (n >= kLanes) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, __mmask16(lane_bits(n)), (__m512)v);
#else
  alignas(64) float part[kLanes];
  store(part, v);
  copy_items(p, part, n);
#endif
}

// Past the cache; p must be a multiple of 64.
FUSEDSTEP_INLINE void stream(float* p, Floats v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__)
  __m256 part[2];
  __builtin_memcpy(part, &v, sizeof v);
  _mm256_stream_ps(p, part[0]);
  _mm256_stream_ps(p + 8, part[1]);
#elif defined(__SSE2__)
  __m128 part[4];
  __builtin_memcpy(part, &v, sizeof v);
  for (int i = 0; i < 4; ++i) _mm_stream_ps(p + 4 * i, part[i]);
#else
  store(p, v);
#endif
}

FUSEDSTEP_INLINE void stream(double* p, Wide v) {
  Floats part[2];
  __builtin_memcpy(part, &v, sizeof v);
  stream(reinterpret_cast<float*>(p), part[0]);
  stream(reinterpret_cast<float*>(p) + kLanes, part[1]);
}

// Streamed stores are weakly ordered: fence before another thread may look.
FUSEDSTEP_INLINE void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

FUSEDSTEP_INLINE Wide widen(Floats v) {
  const auto near = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
  const auto far = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
#if defined(__AVX512F__)
  // GCC 12 splits a conversion of eight floats into two of four, and warns of the unmasked form.
  return {(Doubles)_mm512_maskz_cvtps_pd(0xff, (__m256)near), (Doubles)_mm512_maskz_cvtps_pd(0xff, (__m256)far)};
#else
  return {__builtin_convertvector(near, Doubles), __builtin_convertvector(far, Doubles)};
#endif
}
// The same from memory: the first n of 16 floats, zeros behind them. Converting on the way in saves the shuffles.
FUSEDSTEP_INLINE Wide load_wide(const float* p, std::int64_t n) {
#if defined(__AVX512F__)
  if (n >= kLanes) {
    return {(Doubles)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p)),
            (Doubles)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p + 8))};
  }
#endif
  return widen(load(p, n));
}
FUSEDSTEP_INLINE Wide load_wide(const double* p, std::int64_t n) {
  Wide v;
  if (n >= kLanes) {
    __builtin_memcpy(&v, p, sizeof v);
  } else {
    alignas(64) double part[kLanes] = {};
    copy_items(part, p, n);
    __builtin_memcpy(&v, part, sizeof v);
  }
  return v;
}
// a - b, rounded in their dtype.
FUSEDSTEP_INLINE Wide difference_wide(const float* a, const float* b, std::int64_t n) {
  return widen(load(a, n) - load(b, n));
}
FUSEDSTEP_INLINE Wide difference_wide(const double* a, const double* b, std::int64_t n) {
  const Wide x = load_wide(a, n), y = load_wide(b, n);
  return {x.low - y.low, x.high - y.high};
}
FUSEDSTEP_INLINE Wide load(const double* p, std::int64_t n) { return load_wide(p, n); }
FUSEDSTEP_INLINE void store(double* p, Wide v, std::int64_t n) {
  if (n >= kLanes) {
    __builtin_memcpy(p, &v, sizeof v);
  } else {
    alignas(64) double part[kLanes];
    __builtin_memcpy(part, &v, sizeof v);
    copy_items(p, part, n);
  }
}
FUSEDSTEP_INLINE Wide operator+(Wide a, Wide b) { return {a.low + b.low, a.high + b.high}; }
FUSEDSTEP_INLINE Wide operator-(Wide a, Wide b) { return {a.low - b.low, a.high - b.high}; }
FUSEDSTEP_INLINE Wide operator*(Wide a, Wide b) { return {a.low * b.low, a.high * b.high}; }
FUSEDSTEP_INLINE Wide operator+(Wide a, double b) { return {a.low + b, a.high + b}; }
FUSEDSTEP_INLINE Wide operator-(Wide a, double b) { return {a.low - b, a.high - b}; }
FUSEDSTEP_INLINE Wide operator*(Wide a, double b) { return {a.low * b, a.high * b}; }
FUSEDSTEP_INLINE void operator+=(Wide& a, Wide b) {
  a.low += b.low;
  a.high += b.high;
}

// The first n lanes of v, and those of `behind`, or zeros, behind them.
FUSEDSTEP_INLINE Wide first(Wide v, std::int64_t n, Wide behind = zeros()) {
  if (n >= kLanes) return v;
  const Longs index = {0, 1, 2, 3, 4, 5, 6, 7};
  return {index < n ? v.low : behind.low, index + 8 < n ? v.high : behind.high};
}
FUSEDSTEP_INLINE Floats first(Floats v, std::int64_t n, Floats behind = Floats{}) {
  if (n >= kLanes) return v;
  const Ints index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return index < std::int32_t(n) ? v : behind;
}

// A sum of doubles in 32 lanes: value i goes to lane i mod 32; the lanes meet in a fixed tree.
struct LaneSum {
  Wide half[2] = {};

  FUSEDSTEP_INLINE double total() const {
    const Doubles d = (half[0].low + half[1].low) + (half[0].high + half[1].high);
    return ((d[0] + d[4]) + (d[2] + d[6])) + ((d[1] + d[5]) + (d[3] + d[7]));
  }
};

// a > b ? a : b, or a < b, so that a NaN in a is passed over.
FUSEDSTEP_INLINE Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}
FUSEDSTEP_INLINE Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}
FUSEDSTEP_INLINE Doubles larger(Doubles a, Doubles b) { return a > b ? a : b; }
FUSEDSTEP_INLINE Wide larger(Wide a, Wide b) { return {larger(a.low, b.low), larger(a.high, b.high)}; }

// x == 0 ? yes : no
FUSEDSTEP_INLINE Floats where_zero(Floats x, Floats yes, Floats no) { return x == 0.0f ? yes : no; }
FUSEDSTEP_INLINE Wide where_zero(Wide x, Wide yes, Wide no) {
  return {x.low == 0.0 ? yes.low : no.low, x.high == 0.0 ? yes.high : no.high};
}

// Every lane the same: a difference, as -0 + 0 would be 0.
template <class V>
FUSEDSTEP_INLINE V spread(double x) {
  if constexpr (sizeof(V) == sizeof(Wide)) {
    return {x - Doubles{}, x - Doubles{}};
  } else {
    return float(x) - Floats{};
  }
}

FUSEDSTEP_INLINE Wide widen(Wide v) { return v; }

// Calls f(offset, lanes) for every 16 of l elements, the last time with fewer lanes.
template <class F>
FUSEDSTEP_INLINE void each_lanes(std::int64_t l, F f) {
  std::int64_t i = 0;
  for (; i + kLanes <= l; i += kLanes) f(i, kLanes);
  if (i < l) f(i, l - i);
}

// The same with the half of the lane sum that these lanes belong to: f(offset, lanes, half).
template <class F>
FUSEDSTEP_INLINE void each_half(std::int64_t l, F f) {
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= l; i += 2 * kLanes) {
    f(i, kLanes, 0);
    f(i + kLanes, kLanes, 1);
  }
  if (i < l) f(i, l - i < kLanes ? l - i : kLanes, 0);
  if (i + kLanes < l) f(i + kLanes, l - i - kLanes, 1);
}

// out[i] = f(i, lanes) for l elements, in order. Streamed, the first few go the usual way, up to a whole cache line.
template <class T, class F>
FUSEDSTEP_INLINE void write_lanes(T* out, std::int64_t l, bool streamed, F f) {
  const std::int64_t misaligned = std::int64_t(reinterpret_cast<std::uintptr_t>(out) % 64 / sizeof(T)) % kLanes;
  std::int64_t i = 0, n = streamed && misaligned > 0 ? kLanes - misaligned : kLanes;
  while (i < l) {
    n = l - i < n ? l - i : n;
    if (n < kLanes) {
      store(out + i, f(i, n), n);
      i += n;
      n = kLanes;
    }
    if (streamed) {
      for (; i + kLanes <= l; i += kLanes) stream(out + i, f(i, kLanes));
    } else {
      for (; i + kLanes <= l; i += kLanes) store(out + i, f(i, kLanes), kLanes);
    }
  }
}

}  // namespace fusedstep::FUSEDSTEP_SET
