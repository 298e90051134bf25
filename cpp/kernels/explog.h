// exp and log in plain operations, the same bits on every processor. The constants are those of Moshier's Cephes
// (expf) and Sun's fdlibm (log); reference/explog.py spells out the same steps.
#pragma once

#include "kernels/vector.h"

namespace fusedstep::FUSEDSTEP_SET {

// e^x = 2^n e^r with |r| <= ln(2) / 2; below -104 it is 0, above 89 infinite, within 2 ULP between.
FUSEDSTEP_INLINE Floats exponential(Floats x) {
  x = x < -104.0f ? Floats{} - 104.0f : x;
  x = x > 89.0f ? Floats{} + 89.0f : x;
  // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, which stands in the low bits meanwhile.
  const float round = 12582912.0f;
  const Floats shifted = x * 1.44269504088896341f + round;
  const Ints n = (Ints)shifted - (Ints)(Floats{} + round);
  const Floats whole = shifted - round;
  const Floats r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  // 2^n in two factors: one alone would leave the range of exponents near both ends.
  const Ints half = n >> 1;
  return (p * (Floats)((half + 127) << 23)) * (Floats)((n - half + 127) << 23);
}

// The natural logarithm of a finite x >= 1: x = 2^k m with m in [sqrt(1/2), sqrt(2)), log m by its series in
// s = (m - 1) / (m + 1).
inline double logarithm(double x) {
  std::uint64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const std::uint64_t offset = 0x3fe6a09e667f3bcd;  // sqrt(1/2)
  const std::int64_t k = std::int64_t(bits - offset) >> 52;
  bits -= std::uint64_t(k) << 52;
  double m;
  __builtin_memcpy(&m, &bits, sizeof m);
  const double f = m - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  double p = 1.479819860511658591e-01;
  p = p * z + 1.531383769920937332e-01;
  p = p * z + 1.818357216161805012e-01;
  p = p * z + 2.222219843214978396e-01;
  p = p * z + 2.857142874366239149e-01;
  p = p * z + 3.999999999940941908e-01;
  p = p * z + 6.666666666666735130e-01;
  const double r = p * z;
  const double half_square = 0.5 * (f * f);
  const double n = double(k);
  return n * 6.93147180369123816490e-01 -
         ((half_square - (s * (half_square + r) + n * 1.90821492927058770002e-10)) - f);
}

}  // namespace fusedstep::FUSEDSTEP_SET
