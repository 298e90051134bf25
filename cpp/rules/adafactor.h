// Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018, algorithms 4 and 5.
// Its second moment is stored as a row and a column. NumPy computes its update.
#pragma once

#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Adafactor : RuleBase {
  static constexpr const char* name = "adafactor";
  static constexpr bool native = false;

  struct Hypers {
    double lr, beta2_decay, eps1, eps2, d, weight_decay;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"beta2_decay", Domain::finite},
                                     {"eps", Domain::non_negative, 2, true},
                                     {"d", Domain::positive},
                                     {"weight_decay", Domain::non_negative}};
  static constexpr const char* states[] = {"row_var", "col_var", "variance"};
  static constexpr unsigned exact = 0b111;
  static constexpr Shape shapes[] = {Shape::rows, Shape::columns, Shape::same};
  static const char* refuse(const Hypers& h) {
    if (h.beta2_decay > 0.0) return "beta2_decay: expected a number <= 0";
    if (h.eps2 != h.eps2) return "eps: expected a number for the second";
    return nullptr;
  }

  // A matrix (or a stack of them) is factored; a vector is not.
  enum Variant { factored, whole };
  static constexpr unsigned keeps[] = {0b011, 0b100};
  static int variant_of(const Hypers&, int axes) { return axes > 1 ? factored : whole; }
  static const char* refuse_bits(const Hypers&, int) { return "its states are rows and columns, small as they are"; }
};

}  // namespace fusedstep::FUSEDSTEP_SET
