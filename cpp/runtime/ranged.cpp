#include "runtime/ranged.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fusedstep::runtime {

bool in_range(double sum) { return std::fabs(sum) >= 0x1p-970 && std::isfinite(sum); }

double root_of(const Ranged& squares, double divisor) {
  return std::ldexp(std::sqrt(squares.value) / divisor, squares.exponent / 2);
}

Ranged total_of(const std::vector<Ranged>& parts) {
  constexpr int kNone = std::numeric_limits<int>::min();
  double plain = 0.0;
  int largest = kNone;
  bool scaled = false, finite = true;
  for (const Ranged& part : parts) {
    plain += part.value;
    scaled = scaled || part.exponent != 0;
    finite = finite && std::isfinite(part.value);
    if (part.value != 0.0 && std::isfinite(part.value))
      largest = std::max(largest, std::ilogb(part.value) + part.exponent);
  }
  if (!finite || (!scaled && in_range(plain)) || largest == kNone) return {plain, 0};
  Ranged total = {0.0, largest - (largest & 1)};
  for (const Ranged& part : parts) total.value += std::ldexp(part.value, part.exponent - total.exponent);
  return total;
}

}  // namespace fusedstep::runtime
