// Powers, exponentials and logarithms for the coefficients of a step. Those of C libraries differ in the last bit from
// processor to processor. These compute with twice the precision of a double and round once: the same bits everywhere.
#pragma once

#include <cstdint>

namespace fusedstep::FUSEDSTEP_SET {

// high + low, |low| at most half a unit in the last place of high.
struct TwoDoubles {
  double high, low;
};

inline TwoDoubles two_sum(double a, double b) {
  const double sum = a + b, part = sum - a;
  return {sum, (a - (sum - part)) + (b - part)};
}
inline TwoDoubles operator+(TwoDoubles a, TwoDoubles b) {
  const TwoDoubles sum = two_sum(a.high, b.high), rest = two_sum(a.low, b.low);
  const TwoDoubles near = two_sum(sum.high, sum.low + rest.high);
  return two_sum(near.high, near.low + rest.low);
}
inline TwoDoubles operator*(TwoDoubles a, TwoDoubles b) {
  const double product = a.high * b.high;
  const double error = __builtin_fma(a.high, b.high, -product) + (a.high * b.low + a.low * b.high);
  return two_sum(product, error);
}
inline TwoDoubles operator-(TwoDoubles a) { return {-a.high, -a.low}; }

// base^n for 0 <= base <= 1, within one rounding of the true value. Below e^-50, where 1 - base^n is 1 anyway, it is 0.
inline double integer_power(double base, std::int64_t n) {
  if (double(n) * (1.0 - base) > 50.0) return 0.0;
  TwoDoubles power = {1.0, 0.0}, square = {base, 0.0};
  for (; n > 0; n >>= 1) {
    if (n & 1) power = power * square;
    square = square * square;
  }
  return power.high;
}

// e^x for |x| <= 700, as 2^k e^r: a Taylor series of e^(r / 2^9), squared nine times.
inline TwoDoubles exp_two(TwoDoubles x) {
  constexpr TwoDoubles ln2 = {0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56};
  constexpr int squarings = 9;
  const double k = __builtin_rint(x.high / ln2.high);
  TwoDoubles r = x + -(TwoDoubles{k, 0.0} * ln2);
  r = {r.high / (1 << squarings), r.low / (1 << squarings)};
  // e^r - 1 keeps the digits that 1 + r would lose.
  TwoDoubles sum = {0.0, 0.0};
  for (int n = 10; n >= 2; --n) {
    // 1/n in two doubles
    const double near = 1.0 / n;
    const TwoDoubles inverse = {near, __builtin_fma(-near, double(n), 1.0) / n};
    sum = r * inverse * (TwoDoubles{1.0, 0.0} + sum);
  }
  sum = r * (TwoDoubles{1.0, 0.0} + sum);
  for (int i = 0; i < squarings; ++i) sum = sum + sum + sum * sum;
  const TwoDoubles power = TwoDoubles{1.0, 0.0} + sum;
  return {__builtin_ldexp(power.high, int(k)), __builtin_ldexp(power.low, int(k))};
}

// ln x for x > 0: the C library's logarithm, which need not be right to the last bit, and a correction: the series of
// ln(1 + excess).
inline TwoDoubles log_two(double x) {
  const TwoDoubles y = {__builtin_log(x), 0.0};
  const TwoDoubles excess = TwoDoubles{x, 0.0} * exp_two(-y) + TwoDoubles{-1.0, 0.0};
  return y + excess + -(TwoDoubles{0.5, 0.0} * excess * excess);
}

// base^exponent for base >= 0; results below e^-700 are given as 0, above e^700 as infinity.
inline double real_power(double base, double exponent) {
  if (exponent == 0.0) return 1.0;
  if (base == 0.0) return exponent > 0.0 ? 0.0 : __builtin_huge_val();
  if (exponent == 1.0 || base == 1.0) return base;
  if (!(base < __builtin_huge_val() && exponent < __builtin_huge_val() && exponent > -__builtin_huge_val())) {
    return (base > 1.0) == (exponent > 0.0) ? __builtin_huge_val() : 0.0;
  }
  const TwoDoubles y = log_two(base) * TwoDoubles{exponent, 0.0};
  if (y.high < -700.0) return 0.0;
  if (y.high > 700.0) return __builtin_huge_val();
  return exp_two(y).high;
}

}  // namespace fusedstep::FUSEDSTEP_SET
