// Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", ICNN 1993;
// where the gradient changes its sign there is no step, and no memory of it (iRprop-).
#pragma once

#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Rprop : RuleBase {
  static constexpr const char* name = "rprop";

  struct Hypers {
    double lr, eta_minus, eta_plus, step_min, step_max;
  };
  static constexpr Field fields[] = {
      {"lr", Domain::non_negative}, {"etas", Domain::positive, 2}, {"step_sizes", Domain::non_negative, 2}};
  static constexpr const char* states[] = {"prev", "step_size"};
  static constexpr unsigned exact = 0b10;
  static constexpr unsigned keeps[] = {0b11};
  static constexpr bool begins_with_lr = true;
  static double initial(const Hypers& h, int s) { return s == 1 ? h.lr : 0.0; }
  static const char* refuse_bits(const Hypers&, int bits) {
    return bits == 8 ? "the signs of prev decide, and 8 bits lose those of its small numbers" : nullptr;
  }
  static const char* refuse(const Hypers& h) {
    if (!(h.eta_minus < 1.0 && h.eta_plus > 1.0)) return "etas: expected (less than 1, more than 1)";
    if (!(h.step_min <= h.step_max)) return "step_sizes: expected (smallest, largest)";
    return nullptr;
  }

  template <class T>
  struct Coefficients {
    T eta_minus, eta_plus, step_min, step_max;
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment) {
    return {T(h.eta_minus), T(h.eta_plus), T(h.step_min), T(h.step_max)};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& prev, T& step_size) {
    const T agreement = g * prev;
    const T slower = agreement < T(0) ? c.eta_minus : T(1);
    const T factor = agreement > T(0) ? c.eta_plus : slower;
    step_size = smaller(larger(step_size * factor, c.step_min), c.step_max);
    prev = agreement < T(0) ? T(0) : g;
    return sign_of(prev) * step_size;
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
