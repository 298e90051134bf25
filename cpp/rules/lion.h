// Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu and Le, "Symbolic Discovery of Optimization
// Algorithms", NeurIPS 2023, program 1. The sign of 0 is 0.
#pragma once

#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Lion : RuleBase {
  static constexpr const char* name = "lion";

  struct Hypers {
    double lr, beta1, beta2, weight_decay;
  };
  static constexpr Field fields[] = {
      {"lr", Domain::non_negative}, {"betas", Domain::unit_interval, 2}, {"weight_decay", Domain::non_negative}};
  static constexpr const char* states[] = {"exp_avg"};
  static constexpr int first_moment = 0;
  static constexpr unsigned keeps[] = {0b1};
  static constexpr bool cautious = true;

  template <class T>
  struct Coefficients {
    T lr, beta1, one_minus_beta1, beta2, one_minus_beta2;
    T keep;  // 1 - lr weight_decay
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment) {
    return {T(h.lr), T(h.beta1), T(1.0 - h.beta1), T(h.beta2), T(1.0 - h.beta2), T(1.0 - h.lr * h.weight_decay)};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& exp_avg) {
    const T mixed = c.beta1 * exp_avg + c.one_minus_beta1 * g;
    exp_avg = c.beta2 * exp_avg + c.one_minus_beta2 * g;
    return c.lr * sign_of(mixed);
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
