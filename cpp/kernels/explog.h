// exp and log in plain operations, the same bits on every processor. The constants of log are those of Sun's fdlibm;
// exp is a polynomial fitted to it (float: of the least largest error, 4e-9) or its Taylor series (double);
// reference/explog.py spells out the same steps.
#pragma once

#include "kernels/vector.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class V, class S, int N>
FUSEDSTEP_INLINE V polynomial(V x, const S (&coefficients)[N]) {
  V p = x * coefficients[0] + coefficients[1];
  for (int k = 2; k < N; ++k) p = p * x + coefficients[k];
  return p;
}

// p 2^n, rounded once: in two factors, as one alone would leave the range of exponents near both ends. `whole` is n.
FUSEDSTEP_INLINE Floats times_power(Floats p, [[maybe_unused]] Floats whole, [[maybe_unused]] Ints n) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)whole);
#else
  const Ints half = n >> 1;
  return (p * (Floats)((half + 127) << 23)) * (Floats)((n - half + 127) << 23);
#endif
}
FUSEDSTEP_INLINE Doubles times_power(Doubles p, [[maybe_unused]] Doubles whole, [[maybe_unused]] Longs n) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_maskz_scalef_pd(0xff, (__m512d)p, (__m512d)whole);
#else
  const Longs half = n >> 1;
  return (p * (Doubles)((half + 1023) << 52)) * (Doubles)((n - half + 1023) << 52);
#endif
}

// e^x = 2^n e^r with |r| <= ln(2) / 2, within 1 ULP, for x <= 89; below -104 it is 0.
FUSEDSTEP_INLINE Floats exponential_below(Floats x) {
  x = larger(Floats{} - 104.0f, x);
  // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, which stands in the low bits meanwhile.
  const float round = 12582912.0f;
  const Floats shifted = x * 1.44269504088896341f + round;
  const Floats whole = shifted - round;
  const Floats r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  constexpr float c[] = {1.3814540579915047e-3f, 8.36874544620514e-3f, 4.166838899254799e-2f, 1.666652113199234e-1f,
                         4.999999403953552e-1f};
  const Floats p = (polynomial(r, c) * (r * r) + r) + 1.0f;
  return times_power(p, whole, (Ints)shifted - (Ints)(Floats{} + round));
}
// The same in double, for x <= 710; below -746 it is 0.
FUSEDSTEP_INLINE Doubles exponential_below(Doubles x) {
  x = larger(Doubles{} - 746.0, x);
  const double round = 6755399441055744.0;  // 1.5 * 2^52
  const Doubles shifted = x * 1.44269504088896341 + round;
  const Doubles whole = shifted - round;
  const Doubles r = (x - whole * 6.93147180369123816490e-01) - whole * 1.90821492927058770002e-10;
  constexpr double c[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                          1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      1.0 / 2};
  const Doubles p = (polynomial(r, c) * (r * r) + r) + 1.0;
  return times_power(p, whole, (Longs)shifted - (Longs)(Doubles{} + round));
}
FUSEDSTEP_INLINE Wide exponential_below(Wide x) { return {exponential_below(x.low), exponential_below(x.high)}; }
// Of any x: above 89 it is infinite.
FUSEDSTEP_INLINE Floats exponential(Floats x) { return exponential_below(smaller(Floats{} + 89.0f, x)); }

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

// log(ties + rest), a sum of at least 1; of a smaller one, which is NaN, itself. Where `rest` is added to 1 alone it
// keeps the digits that the sum would lose.
template <class V, class L>
FUSEDSTEP_INLINE V log_of_sum(V ties, V rest, L offset) {
  const V total = ties + rest;
  L bits;
  __builtin_memcpy(&bits, &total, sizeof bits);
  const L n = (bits - offset) >> 52;
  bits -= n << 52;
  V m, exponent;
  __builtin_memcpy(&m, &bits, sizeof m);
  if constexpr (sizeof(V) == sizeof(double)) {
    exponent = double(n);
  } else {
    exponent = __builtin_convertvector(n, V);
  }
  const V zero = ties - ties;
  const auto sure = (ties == 1.0) & (rest < 0.41);
  const V log = log_of_double(sure ? rest : m - 1.0, sure ? zero : exponent);
  return total >= 1.0 ? log : total;
}
inline constexpr std::int64_t kSqrtHalf = 0x3fe6a09e667f3bcd;  // the bits of sqrt(1/2)
inline double log_of_sum(double ties, double rest) { return log_of_sum(ties, rest, kSqrtHalf); }
FUSEDSTEP_INLINE Wide log_of_sum(Wide ties, Wide rest) {
  const Longs offset = Longs{} + kSqrtHalf;
  return {log_of_sum(ties.low, rest.low, offset), log_of_sum(ties.high, rest.high, offset)};
}

// log(1 + x) for x in [0, 1].
FUSEDSTEP_INLINE Floats log_1p(Floats x) {
  const float most = 0.41421356f;
  return log_of(x > most ? (x - 1.0f) * 0.5f : x, x > most ? Floats{} + 1.0f : Floats{}, kLogSeriesFloat,
                6.9313812256e-01f, 9.0580006145e-06f);
}
FUSEDSTEP_INLINE Doubles log_1p(Doubles x) {
  const double most = 0.41421356237309503;
  return log_of_double(x > most ? (x - 1.0) * 0.5 : x, x > most ? Doubles{} + 1.0 : Doubles{});
}
FUSEDSTEP_INLINE Wide log_1p(Wide x) { return {log_1p(x.low), log_1p(x.high)}; }

}  // namespace fusedstep::FUSEDSTEP_SET
