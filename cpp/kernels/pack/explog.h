// exp and log in plain operations, so that every processor gives the same bits. The constants of log are those of Sun's
// fdlibm. exp is a minimax polynomial (float, largest error 4e-9) or its Taylor series (double). reference/explog.py
// spells out the same steps.
#pragma once

#include <bit>

#include "kernels/pack/vectors.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class V, class S, int N>
FUSEDSTEP_INLINE V polynomial(V x, const S (&coefficients)[N]) {
  V p = x * coefficients[0] + coefficients[1];
  for (int k = 2; k < N; ++k) p = p * x + coefficients[k];
  return p;
}

// The constants of exp by dtype. `least`: below it the result is 0. `round`: 1.5 times a power of two; adding it rounds
// to the nearest integer and leaves that in the low bits. ln 2 in two parts. `series`: the polynomial. `bias` and
// `mantissa`: of the floating-point format. 2^(n + lift) is a normal number for all n <= 0 that count.
template <class S>
struct Exponential {
  using Bits = std::uint32_t;
  static constexpr float least = -104.0f, round = 12582912.0f, log2_e = 1.44269504088896341f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float series[] = {1.3814540579915047e-3f, 8.36874544620514e-3f, 4.166838899254799e-2f,
                                     1.666652113199234e-1f, 4.999999403953552e-1f};
  static constexpr int bias = 127, mantissa = 23, lift = 64;
};
template <>
struct Exponential<double> {
  using Bits = std::uint64_t;
  static constexpr double least = -746.0, round = 6755399441055744.0, log2_e = 1.44269504088896341;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double series[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                      1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                      1.0 / 120,        1.0 / 24,        1.0 / 6,        1.0 / 2};
  static constexpr int bias = 1023, mantissa = 52, lift = 512;
};

// p 2^n, rounded once. n comes twice: as `whole`, and in the low bits of `shifted`, the bits above which are shifted
// out. Near both ends of the range 2^n is no normal number, so it is two factors; for n <= 0 one of them is a constant.
template <bool Positive, class V>
FUSEDSTEP_INLINE V times_power(V p, [[maybe_unused]] V shifted, [[maybe_unused]] V whole) {
  if constexpr (is_pair<V>) {
    return {times_power<Positive>(p.low, shifted.low, whole.low),
            times_power<Positive>(p.high, shifted.high, whole.high)};
  } else {
#if defined(__AVX512F__)
    if constexpr (sizeof(Lane<V>) == 4) return (V)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)whole);
    if constexpr (sizeof(Lane<V>) == 8) return (V)_mm512_maskz_scalef_pd(0xff, (__m512d)p, (__m512d)whole);
#else
    using E = Exponential<Lane<V>>;
    using B = Like<typename E::Bits, V>;
    constexpr auto one = typename E::Bits(E::bias) << E::mantissa;
    const B bits = (B)shifted;
    if constexpr (Positive) {
      // n / 2 is rounded down.
      const B half = (bits >> 1) << E::mantissa, rest = (bits << E::mantissa) - half;
      return (p * (V)(half + one)) * (V)(rest + one);
    } else {
      constexpr auto lift = typename E::Bits(E::lift) << E::mantissa;
      return (p * (V)((bits << E::mantissa) + (one + lift))) * std::bit_cast<Lane<V>>(one - lift);
    }
#endif
  }
}

// e^x = 2^n e^r with |r| <= ln(2) / 2, within 1 ULP, for x <= 0, or 89 if Positive (710 in double); below -104, or
// -746, it is 0.
template <bool Positive = false, class V>
FUSEDSTEP_INLINE V exponential_below(V x) {
  using E = Exponential<Lane<V>>;
  x = larger(spread<V>(E::least), x);
  const V shifted = x * E::log2_e + E::round;
  const V whole = shifted - E::round;
  const V r = (x - whole * E::ln2_high) - whole * E::ln2_low;
  const V p = (polynomial(r, E::series) * (r * r) + r) + Lane<V>(1);
  return times_power<Positive>(p, shifted, whole);
}
// e^x of any x: infinite above 89.
FUSEDSTEP_INLINE Floats exponential(Floats x) { return exponential_below<true>(smaller(spread<Floats>(89.0f), x)); }

// log(2^n (1 + f)), f in [sqrt(1/2) - 1, sqrt(2) - 1], by the series in s = f / (2 + f).
inline constexpr double kLogSeries[] = {1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01,
                                        2.222219843214978396e-01, 2.857142874366239149e-01, 3.999999999940941908e-01,
                                        6.666666666666735130e-01};
inline constexpr float kLogSeriesFloat[] = {0.24279078841f, 0.28498786688f, 0.40000972152f, 0.66666662693f};
template <class V, class S, int N>
FUSEDSTEP_INLINE V log_of(V f, V n, const S (&series)[N], S ln2_high, S ln2_low) {
  const V s = f / (f + S(2.0));
  const V z = s * s;
  const V r = polynomial(z, series) * z;
  const V half_square = (f * f) * S(0.5);
  return n * ln2_high - ((half_square - (s * (half_square + r) + n * ln2_low)) - f);
}
template <class V>
FUSEDSTEP_INLINE V log_of_double(V f, V n) {
  return log_of(f, n, kLogSeries, 6.93147180369123816490e-01, 1.90821492927058770002e-10);
}

// log(ties + rest), where the sum is at least 1 or NaN; of NaN it is NaN. With ties = 1 and a small rest it is
// log1p(rest): the sum would lose digits of `rest`.
template <class V>
FUSEDSTEP_INLINE V log_of_sum(V ties, V rest) {
  if constexpr (is_pair<V>) {
    return {log_of_sum(ties.low, rest.low), log_of_sum(ties.high, rest.high)};
  } else {
    using B = Like<std::uint64_t, V>;
    constexpr std::uint64_t sqrt_half = 0x3fe6a09e667f3bcd, magic = 0x4330000000000000;  // the bits of sqrt(1/2), 2^52
    const V total = ties + rest;
    // The exponent of a sum of at least 1 is not negative; the result of any other sum is not used.
    const B n = ((B)total - sqrt_half) >> 52;
    const V m = (V)((B)total - (n << 52));
    const V exponent = (V)(n | magic) - 0x1p52;
    const auto sure = (ties == 1.0) & (rest < 0.41);
    const V log = log_of_double(select(sure, rest, m - 1.0), where_not(sure, exponent));
    return select(total >= 1.0, log, total);
  }
}
inline double log_of_sum(double ties, double rest) {
  using V = Pack<double, kVectorBytes / 8>;
  return log_of_sum(spread<V>(ties), spread<V>(rest))[0];
}

// log(1 + x) for x in [0, 1].
template <class V>
FUSEDSTEP_INLINE V log_1p(V x) {
  using S = Lane<V>;
  const auto split = [x](S most) FUSEDSTEP_LAMBDA {
    const auto far = x > most;
    struct {
      V f, n;
    } parts = {select(far, (x - S(1)) * S(0.5), x), where(far, spread<V>(S(1)))};
    return parts;
  };
  if constexpr (sizeof(S) == sizeof(float)) {
    const auto [f, n] = split(0.41421356f);
    return log_of(f, n, kLogSeriesFloat, 6.9313812256e-01f, 9.0580006145e-06f);
  } else {
    const auto [f, n] = split(0.41421356237309503);
    return log_of_double(f, n);
  }
}

}  // namespace fusedstep::FUSEDSTEP_SET
