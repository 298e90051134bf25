#pragma once

#include <cstdint>

namespace fusedstep::FUSEDSTEP_SET {

// base^n for 0 <= base <= 1, within one rounding of the true value. The C library's pow() differs in the last bit
// between processors; these are a few exact products and sums, so every machine gives the same bits. A power below
// e^-50, which 1 - base^n does not see, is given as 0.
inline double integer_power(double base, std::int64_t n) {
  if (double(n) * (1.0 - base) > 50.0) return 0.0;
  // (high, low) carries a factor in twice the precision of a double.
  double high = 1.0, low = 0.0, square = base, square_low = 0.0;
  for (; n > 0; n >>= 1) {
    if (n & 1) {
      const double product = high * square;
      const double error = __builtin_fma(high, square, -product) + (high * square_low + low * square);
      high = product + error;
      low = error - (high - product);
    }
    const double product = square * square;
    const double error = __builtin_fma(square, square, -product) + 2.0 * (square * square_low);
    square = product + error;
    square_low = error - (square - product);
  }
  return high;
}

}  // namespace fusedstep::FUSEDSTEP_SET
