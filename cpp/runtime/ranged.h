// Sums of products beyond what a double holds, as reference/ranged.py has them.
#pragma once

#include <vector>

namespace fusedstep::runtime {

// A sum of products as value · 2^exponent: where doubles are beyond 10^154, or below 10^-162, their squares are no
// numbers. The exponent is 0 where nothing of the kind has happened, and that of squares is even.
struct Ranged {
  double value = 0.0;
  int exponent = 0;
};

// Whether a sum of products of doubles lost nothing: none overflowed, and none that counts underflowed.
bool in_range(double sum);
// The root of a sum of squares, divided by a number.
double root_of(const Ranged& squares, double divisor = 1.0);
// The sum in the order of the parts.
Ranged total_of(const std::vector<Ranged>& parts);

}  // namespace fusedstep::runtime
