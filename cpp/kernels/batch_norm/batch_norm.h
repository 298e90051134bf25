// What both layouts of batch norm share: sums in double, statistics, and the maths of one element.
//
// Statistics take one pass over d = x - pivot. The pivot is the mean of k values of the channel, so it is at most
// sqrt(count / k) standard deviations from the mean. Cancellation in m2 = sum d^2 - (sum d)^2 / count then costs a
// factor of count / k at most, and of 1 + 1/k commonly: Chan, Golub and LeVeque, "Algorithms for computing the sample
// variance", The American Statistician 37, 1983.
#pragma once

#include "kernels/abi/batch_norm.h"
#include "kernels/codec/narrow.h"
#include "maths/power.h"

namespace fusedstep::FUSEDSTEP_SET {

// The pivot is the mean of so many values.
inline constexpr std::int64_t kPivotValues = 16;

// A pack of sums. Exact: `low` adds up what rounding takes from `high`.
template <bool Exact, class V>
struct Sums {
  V high = {}, low = {};

  FUSEDSTEP_INLINE void add(V v, V v_low) { add_to(high, low, v, v_low); }
  FUSEDSTEP_INLINE void read(const double* from, std::int64_t pitch) {
    high = load_pack<V>(from);
    if constexpr (Exact) low = load_pack<V>(from + pitch);
  }
  FUSEDSTEP_INLINE void write(double* to, std::int64_t pitch) const {
    store_pack(to, high);
    if constexpr (Exact) store_pack(to + pitch, low);
  }
  // For a pack, or a part of one.
  template <class P>
  FUSEDSTEP_INLINE static void add_to(P& high, P& low, P v, P v_low) {
    if constexpr (Exact) {
      const P sum = high + v, part = sum - high;
      low = low + (v_low + ((high - (sum - part)) + (v - part)));
      high = sum;
    } else {
      high = high + v;
    }
  }
};

// Lanes of two such sums that fill half of the registers; 8 at least, which is a vector of words.
template <bool Exact>
inline constexpr int kSummed = [] {
  const int lanes = kRegisters * kVectorBytes / (Exact ? 64 : 32);
  return lanes < 8 ? 8 : lanes > kSumLanes ? kSumLanes : lanes;
}();

// What a value adds to two sums, u and v; u_low is what rounding has taken from u.
template <class V>
struct Terms {
  V u, v, u_low;
};

// d = x - pivot and its square.
template <bool Exact, class V>
FUSEDSTEP_INLINE Terms<V> moment_terms(V x, V pivot, std::int64_t n) {
  const V d = first(x - pivot, n);
  if constexpr (Exact) {
    const V part = d - x;
    return {d, d * d, first((x - (d - part)) - (pivot + part), n)};
  } else {
    return {d, d * d, V{}};
  }
}

// Doubles that a sum is kept in.
template <bool Exact>
inline constexpr int kWords = Exact ? 2 : 1;

// `low` may grow beyond half a unit of `high`; the end of the sum renormalizes it.
FUSEDSTEP_INLINE void gather(TwoDoubles& total, TwoDoubles more) {
  const TwoDoubles sum = two_sum(total.high, more.high);
  total.high = sum.high;
  total.low += more.low + sum.low;
}

// The sum of 32 lanes: their high parts, then, exact, their low ones.
template <bool Exact>
FUSEDSTEP_INLINE TwoDoubles total_of(const double* lanes) {
  if constexpr (Exact) {
    TwoDoubles lane[kSumLanes];
    for (int k = 0; k < kSumLanes; ++k) lane[k] = {lanes[k], lanes[kSumLanes + k]};
    for (int width = kSumLanes / 2; width > 0; width /= 2) {
      for (int k = 0; k < width; ++k) gather(lane[k], lane[k + width]);
    }
    return lane[0];
  } else {
    return {LaneSum{{load(lanes), load(lanes + kLanes)}}.total(), 0.0};
  }
}

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

// Coefficients. V is a scalar, the same for all lanes, or a pack. `values` is how many of them there are; memory holds
// them in the order of the fields.

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

// Coefficients for runs that all belong to channel c. They do not change, so that they stay in registers.
template <class C, class Args>
struct OfChannel {
  C coefficients;

  OfChannel(const Args& a, std::int64_t c) : coefficients(C::of(a, c)) {}
  FUSEDSTEP_INLINE void begin() {}
  FUSEDSTEP_INLINE const C& next(std::int64_t) { return coefficients; }
  FUSEDSTEP_INLINE void take(const OfChannel&) {}
};

// Coefficients for runs of one channel each: channel c, then the next one with every run. From arrays of one value
// each, `pitch` entries apart.
template <class Scalar, template <class> class Coefficients>
struct PerRun {
  const Scalar* arrays;
  std::int64_t pitch, c, channels;
  Coefficients<Scalar> coefficients = {};

  FUSEDSTEP_INLINE void begin() {
    coefficients = [&]<int... K>(std::integer_sequence<int, K...>) FUSEDSTEP_LAMBDA {
      return Coefficients<Scalar>{arrays[K * pitch + c]...};
    }(std::make_integer_sequence<int, Coefficients<Scalar>::values>());
    if (++c == channels) c = 0;
  }
  FUSEDSTEP_INLINE const Coefficients<Scalar>& next(std::int64_t) { return coefficients; }
  FUSEDSTEP_INLINE void take(const PerRun& other) {
    c = other.c;
    coefficients = other.coefficients;
  }
};

// Writes the coefficients of channels [begin, end): an array for each value of Coefficients<V>, `pitch` entries apart.
template <class V, template <class> class Coefficients, class Args>
inline void lay_out(const Args& a, V* arrays, std::int64_t pitch, std::int64_t begin, std::int64_t end) {
  constexpr int values = Coefficients<V>::values;
  static_assert(sizeof(Coefficients<V>) == values * sizeof(V) && values <= kCoefficients);
  for (std::int64_t c = begin; c < end; ++c) {
    V of_channel[values];
    const Coefficients<V> coefficients = Coefficients<V>::of(a, c);
    __builtin_memcpy(of_channel, &coefficients, sizeof of_channel);
    for (int k = 0; k < values; ++k) arrays[k * pitch + c - begin] = of_channel[k];
  }
}

// relu, and a bit for each lane that it lets pass; NaN passes.
template <class V>
FUSEDSTEP_INLINE V rectified(V z, unsigned& passing) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Lane<V>) == 4) {
    passing = _mm512_cmp_ps_mask((__m512)z, _mm512_setzero_ps(), _CMP_NLE_UQ);
  } else {
    passing = unsigned(_mm512_cmp_pd_mask((__m512d)z.low, _mm512_setzero_pd(), _CMP_NLE_UQ)) |
              unsigned(_mm512_cmp_pd_mask((__m512d)z.high, _mm512_setzero_pd(), _CMP_NLE_UQ)) << 8;
  }
  return where_not(z <= V{}, z);
#else
  const auto stopped = z <= V{};
  passing = bits_of(stopped) ^ 0xffffu;
  return where_not(stopped, z);
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

// The 16 bits from bit i on; one word behind the mask must be readable.
FUSEDSTEP_INLINE unsigned bits_at(const std::uint16_t* mask, std::int64_t i) {
  std::uint32_t two;
  __builtin_memcpy(&two, mask + i / 16, sizeof two);
  return (two >> (i % 16)) & 0xffffu;
}

// The first n values as doubles, and zeros where their bit is 0.
template <int N = kLanes, class T>
FUSEDSTEP_INLINE Pack<double, N> load_kept(const T* p, std::int64_t n, unsigned bits) {
  // With mask registers, a conversion from memory saves more than halving the number of masks.
  if constexpr (kVectorBytes == 64) return keep(load_wide<N>(p, n), bits);
  return widen(keep(load<N>(p, n), bits));
}

// Runs of l contiguous values, `pitch` values apart; their masks are `words` words apart. `ahead`: so many values on is
// what will be taken next, after memory that the processor's own prefetch does not bridge; 0: there is no such gap.
// goes_on: the first run continues a run of an earlier call.
struct Runs {
  std::int64_t runs, l, pitch, words, ahead = 0;
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
      if constexpr (Residual) {
        const T* const added = residual + k * r.pitch + i;
        if (r.ahead != 0) __builtin_prefetch(added + r.ahead, 0, 2);
        z = z + load(added, n);
      }
      if constexpr (Relu) {
        unsigned passing;
        z = rectified(z, passing);
        writer.put(passing, n);
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

// part(at, word, block) for each part of the runs that fits into scratch: `at` is its first value, `word` the first
// word of its mask.
template <class Part>
FUSEDSTEP_INLINE void each_part(const Runs& r, Part part) {
  for (std::int64_t k = 0; k < r.runs; ++k) {
    for (std::int64_t i = 0; i < r.l; i += kBlock) {
      part(k * r.pitch + i, k * r.words + i / 16, Runs{1, r.l - i < kBlock ? r.l - i : kBlock, 0, 0, 0, i > 0});
    }
  }
}

// write(to, run, runs, streamed) writes `runs` from number `run` on. Short runs, one behind the other, would be
// streamed in broken lines: they are written to scratch, and streamed from there.
inline constexpr std::int64_t kShortRun = 256, kScratch = 2048;
template <class T, class Write>
FUSEDSTEP_INLINE void write_runs(T* out, const Runs& r, bool streamed, Write write) {
  if (!streamed || r.runs == 1 || r.l >= kShortRun || r.pitch != r.l) return write(out, 0, r, streamed);
  alignas(64) T scratch[kScratch];
  const std::int64_t at_once = kScratch / r.l;
  for (std::int64_t run = 0; run < r.runs; run += at_once) {
    const std::int64_t runs = r.runs - run < at_once ? r.runs - run : at_once;
    write(scratch, run, Runs{runs, r.l, r.l, r.words, r.ahead}, false);
    write_lanes(out + run * r.l, runs * r.l, true,
                [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA { return load(scratch + i, n); });
  }
}

template <class T>
FUSEDSTEP_INLINE void fetch(const T* values, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += 64 / std::int64_t(sizeof(T))) __builtin_prefetch(values + i, 0, 2);
}

// y of runs of values. Narrow dtypes are decoded and encoded block by block.
template <class T, class Coefficients>
inline void normalize(T* y, const T* x, const T* residual, std::uint16_t* mask, const Runs& all, bool streamed,
                      Coefficients coefficients) {
  write_runs(y, all, streamed, [&](T* to, std::int64_t run, const Runs& r, bool past_cache) FUSEDSTEP_LAMBDA {
    const T* const from = x + run * r.pitch;
    const T* const beside = residual ? residual + run * r.pitch : nullptr;
    std::uint16_t* const bits = mask ? mask + run * r.words : nullptr;
    if constexpr (Arithmetic<T>::narrow) {
      alignas(64) float values[kBlock], added[kBlock];
      each_part(r, [&](std::int64_t at, std::int64_t word, const Runs& block) FUSEDSTEP_LAMBDA {
        decode_block(from + at, values, block.l);
        if (residual && r.ahead != 0) fetch(beside + at + r.ahead, block.l);
        if (residual) decode_block(beside + at, added, block.l);
        normalize_floats(values, values, residual ? added : nullptr, mask ? bits + word : nullptr, block, false,
                         coefficients);
        encode_block(values, to + at, block.l, past_cache);
      });
    } else {
      normalize_floats(to, from, beside, bits, r, past_cache, coefficients);
    }
  });
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

// dy where relu let the value pass, else 0.
template <class T>
__attribute__((noinline)) void select(T* out, const T* dy, const std::uint16_t* mask, const Runs& r, bool streamed) {
  for (std::int64_t k = 0; k < r.runs; ++k, out += r.pitch, dy += r.pitch, mask += r.words) {
    write_lanes(out, r.l, streamed, [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA {
      return keep(load(dy + i, n), bits_at(mask, i));
    });
  }
}

// dx of runs of values, and dresidual unless it is null.
template <class T, class Coefficients>
inline void differentiate(T* dx, T* dresidual, const T* dy, const T* x, const std::uint16_t* mask, const Runs& all,
                          bool streamed, Coefficients coefficients) {
  if (dresidual) {
    write_runs(dresidual, all, streamed, [&](T* to, std::int64_t run, const Runs& r, bool past_cache) FUSEDSTEP_LAMBDA {
      select(to, dy + run * r.pitch, mask + run * r.words, r, past_cache);
    });
  }
  write_runs(dx, all, streamed, [&](T* to, std::int64_t run, const Runs& r, bool past_cache) FUSEDSTEP_LAMBDA {
    const T *const given = dy + run * r.pitch, *const from = x + run * r.pitch;
    const std::uint16_t* const bits = mask ? mask + run * r.words : nullptr;
    if constexpr (Arithmetic<T>::narrow) {
      alignas(64) float values[kBlock], gradient[kBlock];
      each_part(r, [&](std::int64_t at, std::int64_t word, const Runs& block) FUSEDSTEP_LAMBDA {
        decode_block(from + at, values, block.l);
        decode_block(given + at, gradient, block.l);
        differentiate_floats(values, gradient, values, mask ? bits + word : nullptr, block, false, coefficients);
        encode_block(values, to + at, block.l, past_cache);
      });
    } else {
      differentiate_floats(to, given, from, bits, r, past_cache, coefficients);
    }
  });
}

}  // namespace fusedstep::FUSEDSTEP_SET
