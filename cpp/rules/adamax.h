// Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 2; eps is inside the maximum, as
// in PyTorch.
#pragma once

#include "maths/power.h"
#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Adamax : RuleBase {
  static constexpr const char* name = "adamax";

  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"betas", Domain::unit_interval, 2},
                                     {"eps", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative}};
  static constexpr const char* states[] = {"exp_avg", "exp_inf"};
  static constexpr unsigned squares = 0b10;
  static constexpr int first_moment = 0;
  static constexpr unsigned keeps[] = {0b11};
  static constexpr bool cautious = true;
  static double coupled_decay(const Hypers& h) { return h.weight_decay; }

  template <class T>
  struct Coefficients {
    T beta1, one_minus_beta1, beta2, eps;
    T step_size;  // lr / (1 - beta1^t)
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    return {T(h.beta1), T(1.0 - h.beta1), T(h.beta2), T(h.eps), T(h.lr / (1.0 - integer_power(h.beta1, now.step)))};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& exp_avg, T& exp_inf) {
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g;
    exp_inf = larger(c.beta2 * exp_inf, absolute(g) + c.eps);
    return c.step_size * (exp_avg / exp_inf);
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
