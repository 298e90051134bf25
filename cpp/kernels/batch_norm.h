// What the layouts of batch norm share: sums in double, statistics, and the maths of one element.
//
// Statistics are taken in one pass, of d = x - pivot. The pivot is the mean of k of the channel's values, hence at most
// sqrt(count / k) deviations from the mean, so that m2 = sum d^2 - (sum d)^2 / count loses a factor of count / k at
// most, and 1 + 1/k commonly: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The American
// Statistician 37, 1983.
#pragma once

#include "kernels/narrow.h"
#include "kernels/table.h"
#include "rules/power.h"

namespace fusedstep::FUSEDSTEP_SET {

// Values that the pivot is the mean of.
inline constexpr std::int64_t kPivotValues = 16;

// Sixteen sums. Exact, `low` gathers what rounding takes away.
template <bool Exact>
struct Sums16 {
  Wide high = zeros();

  FUSEDSTEP_INLINE void add(Wide v, Wide) { high += v; }
  FUSEDSTEP_INLINE void read(const double* from, std::int64_t) { high = load_wide(from, kLanes); }
  FUSEDSTEP_INLINE void write(double* to, std::int64_t) const { store(to, high, kLanes); }
};
template <>
struct Sums16<true> {
  Wide high = zeros(), low = zeros();

  FUSEDSTEP_INLINE void add(Wide v, Wide v_low) {
    const Wide sum = high + v, part = sum - high;
    low += v_low + ((high - (sum - part)) + (v - part));
    high = sum;
  }
  FUSEDSTEP_INLINE void read(const double* from, std::int64_t pitch) {
    high = load_wide(from, kLanes);
    low = load_wide(from + pitch, kLanes);
  }
  FUSEDSTEP_INLINE void write(double* to, std::int64_t pitch) const {
    store(to, high, kLanes);
    store(to + pitch, low, kLanes);
  }
};

// What a value adds to two sums; of the first one, also what rounding has taken from it.
struct Terms {
  Wide u, v, u_low;
};

// d = x - pivot and its square.
template <bool Exact>
FUSEDSTEP_INLINE Terms moment_terms(Wide x, Wide pivot, std::int64_t n) {
  const Wide d = first(x - pivot, n);
  if constexpr (Exact) {
    const Wide part = d - x;
    return {d, d * d, first((x - (d - part)) - (pivot + part), n)};
  } else {
    return {d, d * d, zeros()};
  }
}

// Doubles that a sum is kept in.
template <bool Exact>
inline constexpr int kWords = Exact ? 2 : 1;

// `low` is not brought below half a unit of `high` until the end.
FUSEDSTEP_INLINE void gather(TwoDoubles& total, TwoDoubles more) {
  const TwoDoubles sum = two_sum(total.high, more.high);
  total.high = sum.high;
  total.low += more.low + sum.low;
}

template <bool Exact>
struct Sums32 {
  Sums16<Exact> half[2];

  FUSEDSTEP_INLINE TwoDoubles total() const {
    if constexpr (Exact) {
      TwoDoubles lane[2 * kLanes];
      for (int k = 0; k < 2 * kLanes; ++k) {
        const auto& [high, low] = half[k / kLanes];
        const int i = k % 8;
        lane[k] = k % kLanes < 8 ? TwoDoubles{high.low[i], low.low[i]} : TwoDoubles{high.high[i], low.high[i]};
      }
      for (int width = kLanes; width > 0; width /= 2) {
        for (int k = 0; k < width; ++k) gather(lane[k], lane[k + width]);
      }
      return lane[0];
    } else {
      return {LaneSum{{half[0].high, half[1].high}}.total(), 0.0};
    }
  }
};

struct Moments {
  TwoDoubles mean, m2;
};

inline Moments moments_of(double pivot, TwoDoubles sum, TwoDoubles squares, double count) {
  sum = two_sum(sum.high, sum.low);
  squares = two_sum(squares.high, squares.low);
  const double near = sum.high / count;
  const TwoDoubles shift = {near, (__builtin_fma(-near, count, sum.high) + sum.low) / count};
  const TwoDoubles mean = two_sum(pivot, shift.high), m2 = squares + -(sum * shift);
  return {two_sum(mean.high, mean.low + shift.low), m2.high < 0.0 ? TwoDoubles{0.0, 0.0} : m2};
}

// The statistics of channel c for this batch.
inline void take_statistics(const BatchNormArgs& a, std::int64_t c, double pivot, TwoDoubles sum, TwoDoubles squares) {
  const double count = double(a.n * a.l);
  const Moments m = moments_of(pivot, sum, squares, count);
  a.mean[c] = m.mean.high;
  a.m2[c] = m.m2.high;
  a.inv_std[c] = 1.0 / __builtin_sqrt(m.m2.high / count + a.eps);
  if (a.mean_low) {
    a.mean_low[c] = m.mean.low;
    a.m2_low[c] = m.m2.low;
  }
}

inline void take_gradient_sums(const BatchNormGradientArgs& a, std::int64_t c, TwoDoubles sum_dy, TwoDoubles sum_dy_d) {
  a.sum_dy[c] = sum_dy.high + sum_dy.low;
  a.sum_dy_d[c] = sum_dy_d.high + sum_dy_d.low;
}

inline double scale_of(const BatchNormArgs& a, std::int64_t c) { return a.inv_std[c] * (a.weight ? a.weight[c] : 1.0); }
inline double bias_of(const BatchNormArgs& a, std::int64_t c) { return a.bias ? a.bias[c] : 0.0; }

// x - mean to the last bit of x's dtype, also where the mean dwarfs the deviation: the mean in two parts.
template <class V>
struct Centre {
  V high, rest;
  static Centre of(double mean) { return {V(mean), V(mean - double(V(mean)))}; }
  template <class X>
  FUSEDSTEP_INLINE X operator()(X x) const {
    return (x - high) - rest;
  }
};

// V: a scalar, the same for all lanes, or lanes. Values are laid out in the order of the fields.

// y = scale (x - mean) + shift
template <class V>
struct Affine {
  static constexpr int values = 4;
  Centre<V> centre;
  V scale, shift;
  static Affine of(const BatchNormArgs& a, std::int64_t c) {
    return {Centre<V>::of(a.mean[c]), V(scale_of(a, c)), V(bias_of(a, c))};
  }
  template <class X>
  FUSEDSTEP_INLINE X operator()(X x) const {
    return centre(x) * scale + shift;
  }
};

// y = scale x + shift
template <class V>
struct Folded {
  static constexpr int values = 2;
  V scale, shift;
  static Folded of(const BatchNormArgs& a, std::int64_t c) {
    const double scale = scale_of(a, c);
    return {V(scale), V(bias_of(a, c) - a.mean[c] * scale)};
  }
  template <class X>
  FUSEDSTEP_INLINE X operator()(X x) const {
    return x * scale + shift;
  }
};

// dx = scale ((dy - offset) - slope (x - mean))
template <class V>
struct Gradient {
  static constexpr int values = 5;
  Centre<V> centre;
  V scale, offset, slope;
  static Gradient of(const BatchNormGradientArgs& a, std::int64_t c) {
    return {Centre<V>::of(a.mean[c]), V(a.scale[c]), V(a.sum_dy[c] / a.count),
            V((a.inv_std[c] * a.inv_std[c]) * (a.sum_dy_d[c] / a.count))};
  }
  template <class X>
  FUSEDSTEP_INLINE X operator()(X dy, X x) const {
    return ((dy - offset) - centre(x) * slope) * scale;
  }
};

// With constant statistics: dx = scale dy
template <class V>
struct Scaled {
  static constexpr int values = 1;
  V scale;
  static Scaled of(const BatchNormGradientArgs& a, std::int64_t c) { return {V(a.scale[c])}; }
  template <class X>
  FUSEDSTEP_INLINE X operator()(X dy, X) const {
    return dy * scale;
  }
};

// Coefficients of runs of one channel each: of channel c, and with a stride of 1 of the next one in the next run.
template <class C, class Args>
struct PerRun {
  const Args& args;
  std::int64_t c, stride;
  C coefficients;

  PerRun(const Args& a, std::int64_t channel, std::int64_t step) : args(a), c(channel), stride(step) {}
  FUSEDSTEP_INLINE void begin() {
    coefficients = C::of(args, c);
    c += stride;
    if (c == args.c) c = 0;
  }
  FUSEDSTEP_INLINE const C& next(std::int64_t) { return coefficients; }
  FUSEDSTEP_INLINE void take(const PerRun& other) {
    c = other.c;
    coefficients = other.coefficients;
  }
};

// Bits of the lanes that relu lets pass, NaN among them, and relu.
FUSEDSTEP_INLINE unsigned passing(Floats z) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)z, _mm512_setzero_ps(), _CMP_NLE_UQ);
#elif defined(__AVX__)
  __m256 part[2];
  __builtin_memcpy(part, &z, sizeof z);
  const __m256 zero = _mm256_setzero_ps();
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(part[0], zero, _CMP_NLE_UQ))) |
         unsigned(_mm256_movemask_ps(_mm256_cmp_ps(part[1], zero, _CMP_NLE_UQ))) << 8;
#elif defined(__SSE2__)
  __m128 part[4];
  __builtin_memcpy(part, &z, sizeof z);
  unsigned bits = 0;
  for (int k = 0; k < 4; ++k) bits |= unsigned(_mm_movemask_ps(_mm_cmpnle_ps(part[k], _mm_setzero_ps()))) << (4 * k);
  return bits;
#else
  const Ints bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  const Ints set = ~(z <= 0.0f) & bit;
  int bits = 0;
  for (int k = 0; k < kLanes; ++k) bits |= set[k];
  return unsigned(bits);
#endif
}
FUSEDSTEP_INLINE unsigned passing(Wide z) {
#if defined(__AVX512F__)
  return unsigned(_mm512_cmp_pd_mask((__m512d)z.low, _mm512_setzero_pd(), _CMP_NLE_UQ)) |
         unsigned(_mm512_cmp_pd_mask((__m512d)z.high, _mm512_setzero_pd(), _CMP_NLE_UQ)) << 8;
#else
  unsigned bits = 0;
  for (int k = 0; k < 8; ++k) bits |= unsigned(!(z.low[k] <= 0.0)) << k | unsigned(!(z.high[k] <= 0.0)) << (k + 8);
  return bits;
#endif
}
FUSEDSTEP_INLINE Floats rectified(Floats z) { return z <= 0.0f ? Floats{} : z; }
FUSEDSTEP_INLINE Wide rectified(Wide z) {
  return {z.low <= 0.0 ? Doubles{} : z.low, z.high <= 0.0 ? Doubles{} : z.high};
}

// Zeros in the lanes whose bit is 0.
FUSEDSTEP_INLINE Floats keep(Floats v, unsigned bits) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_mov_ps(__mmask16(bits), (__m512)v);
#else
  const Ints bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  return (Floats)((Ints)v & (((Ints{} + int(bits)) & bit) != 0));
#endif
}
FUSEDSTEP_INLINE Wide keep(Wide v, unsigned bits) {
#if defined(__AVX512F__)
  return {(Doubles)_mm512_maskz_mov_pd(__mmask8(bits), (__m512d)v.low),
          (Doubles)_mm512_maskz_mov_pd(__mmask8(bits >> 8), (__m512d)v.high)};
#else
  const Longs bit = {1, 2, 4, 8, 16, 32, 64, 128}, all = Longs{} + long(bits);
  return {(Doubles)((Longs)v.low & ((all & bit) != 0)), (Doubles)((Longs)v.high & (((all >> 8) & bit) != 0))};
#endif
}

struct BitWriter {
  std::uint16_t* to;
  unsigned pending = 0;
  int filled = 0;

  FUSEDSTEP_INLINE void put(unsigned bits, std::int64_t n) {
    pending |= (bits & lane_bits(n)) << filled;
    filled += int(n);
    if (filled >= 16) {
      *to++ = std::uint16_t(pending);
      pending >>= 16;
      filled -= 16;
    }
  }
  FUSEDSTEP_INLINE void end() {
    if (filled > 0) *to = std::uint16_t(pending);
  }
};

// The 16 bits from bit i on; one more word than the mask's must be readable.
FUSEDSTEP_INLINE unsigned bits_at(const std::uint16_t* mask, std::int64_t i) {
  std::uint32_t two;
  __builtin_memcpy(&two, mask + i / 16, sizeof two);
  return (two >> (i % 16)) & 0xffffu;
}

// Contiguous runs of values in memory: `runs` of l values, `pitch` apart; of a mask, `words` apart. The first may go on
// with what an earlier one began.
struct Runs {
  std::int64_t runs, l, pitch, words;
  bool goes_on = false;
};

template <class T, bool Relu, bool Residual, class Coefficients>
void normalize_values(T* y, const T* x, const T* residual, std::uint16_t* mask, const Runs& of, bool streamed,
                      Coefficients& coefficients) {
  const Runs r = of;
  Coefficients local = coefficients;
  for (std::int64_t k = 0; k < r.runs; ++k, y += r.pitch, x += r.pitch) {
    if (k > 0 || !r.goes_on) local.begin();
    BitWriter writer = {mask + k * r.words};
    write_lanes(y, r.l, streamed, [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA {
      auto z = local.next(n)(load(x + i, n));
      if constexpr (Residual) z = z + load(residual + k * r.pitch + i, n);
      if constexpr (Relu) {
        writer.put(passing(z), n);
        z = rectified(z);
      }
      return z;
    });
    if constexpr (Relu) writer.end();
  }
  coefficients.take(local);
}

template <class T, class Coefficients>
FUSEDSTEP_INLINE void normalize_floats(T* y, const T* x, const T* residual, std::uint16_t* mask, const Runs& r,
                                       bool streamed, Coefficients& coefficients) {
  if (mask) {
    residual ? normalize_values<T, true, true>(y, x, residual, mask, r, streamed, coefficients)
             : normalize_values<T, true, false>(y, x, residual, mask, r, streamed, coefficients);
  } else {
    residual ? normalize_values<T, false, true>(y, x, residual, mask, r, streamed, coefficients)
             : normalize_values<T, false, false>(y, x, residual, mask, r, streamed, coefficients);
  }
}

// part(at, n) for each block of the runs that fits into scratch: `at` is the block's first value, `words` that of the
// mask's words.
template <class Part>
FUSEDSTEP_INLINE void each_part(const Runs& r, Part part) {
  for (std::int64_t k = 0; k < r.runs; ++k) {
    for (std::int64_t i = 0; i < r.l; i += kBlock) {
      part(k * r.pitch + i, k * r.words + i / 16, Runs{1, r.l - i < kBlock ? r.l - i : kBlock, 0, 0, i > 0});
    }
  }
}

// y of runs of values. Narrow ones are brought to floats and back block by block.
template <class T, class Coefficients>
inline void normalize(T* y, const T* x, const T* residual, std::uint16_t* mask, const Runs& r, bool streamed,
                      Coefficients coefficients) {
  if constexpr (Arithmetic<T>::narrow) {
    alignas(64) float values[kBlock], added[kBlock];
    each_part(r, [&](std::int64_t at, std::int64_t word, const Runs& block) FUSEDSTEP_LAMBDA {
      decode_block(x + at, values, block.l);
      if (residual) decode_block(residual + at, added, block.l);
      normalize_floats(values, values, residual ? added : nullptr, mask ? mask + word : nullptr, block, false,
                       coefficients);
      encode_block(values, y + at, block.l, streamed);
    });
  } else {
    normalize_floats(y, x, residual, mask, r, streamed, coefficients);
  }
}

template <class T, bool Relu, class Coefficients>
void differentiate_values(T* dx, const T* dy, const T* x, const std::uint16_t* mask, const Runs& of, bool streamed,
                          Coefficients& coefficients) {
  const Runs r = of;
  Coefficients local = coefficients;
  for (std::int64_t k = 0; k < r.runs; ++k, dx += r.pitch, dy += r.pitch, x += r.pitch, mask += r.words) {
    if (k > 0 || !r.goes_on) local.begin();
    write_lanes(dx, r.l, streamed, [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA {
      auto g = load(dy + i, n);
      if constexpr (Relu) g = keep(g, bits_at(mask, i));
      return local.next(n)(g, load(x + i, n));
    });
  }
  coefficients.take(local);
}

template <class T, class Coefficients>
FUSEDSTEP_INLINE void differentiate_floats(T* dx, const T* dy, const T* x, const std::uint16_t* mask, const Runs& r,
                                           bool streamed, Coefficients& coefficients) {
  mask ? differentiate_values<T, true>(dx, dy, x, mask, r, streamed, coefficients)
       : differentiate_values<T, false>(dx, dy, x, mask, r, streamed, coefficients);
}

// What relu lets pass of dy.
template <class T>
__attribute__((noinline)) void select(T* out, const T* dy, const std::uint16_t* mask, const Runs& r, bool streamed) {
  for (std::int64_t k = 0; k < r.runs; ++k, out += r.pitch, dy += r.pitch, mask += r.words) {
    write_lanes(out, r.l, streamed, [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA {
      return keep(load(dy + i, n), bits_at(mask, i));
    });
  }
}

// dx of runs of values, and dresidual where it is wanted.
template <class T, class Coefficients>
inline void differentiate(T* dx, T* dresidual, const T* dy, const T* x, const std::uint16_t* mask, const Runs& r,
                          bool streamed, Coefficients coefficients) {
  if (dresidual) select(dresidual, dy, mask, r, streamed);
  if constexpr (Arithmetic<T>::narrow) {
    alignas(64) float values[kBlock], gradient[kBlock];
    each_part(r, [&](std::int64_t at, std::int64_t word, const Runs& block) FUSEDSTEP_LAMBDA {
      decode_block(x + at, values, block.l);
      decode_block(dy + at, gradient, block.l);
      differentiate_floats(values, gradient, values, mask ? mask + word : nullptr, block, false, coefficients);
      encode_block(values, dx + at, block.l, streamed);
    });
  } else {
    differentiate_floats(dx, dy, x, mask, r, streamed, coefficients);
  }
}

}  // namespace fusedstep::FUSEDSTEP_SET
