// Adam on the rows that have a gradient; the averages of the other rows do not decay meanwhile. As in PyTorch's
// SparseAdam, eps is added to the root before its bias correction.
#pragma once

#include "maths/power.h"
#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct SparseAdam : RuleBase {
  static constexpr const char* name = "sparse_adam";

  struct Hypers {
    double lr, beta1, beta2, eps;
  };
  static constexpr Field fields[] = {
      {"lr", Domain::non_negative}, {"betas", Domain::unit_interval, 2}, {"eps", Domain::non_negative}};
  static constexpr const char* states[] = {"exp_avg", "exp_avg_sq"};
  static constexpr unsigned squares = 0b10;
  static constexpr int first_moment = 0;
  static constexpr unsigned keeps[] = {0b11};
  static constexpr bool sparse = true, dense = false;
  static const char* refuse_bits(const Hypers&, int bits) {
    return bits == 8 ? "its rows do not fill the blocks that share a scale" : nullptr;
  }

  template <class T>
  struct Coefficients {
    T beta1, one_minus_beta1, beta2, one_minus_beta2;
    T step_size;  // lr sqrt(1 - beta2^t) / (1 - beta1^t)
    T eps;
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    const double correction1 = 1.0 - integer_power(h.beta1, now.step);
    const double correction2 = 1.0 - integer_power(h.beta2, now.step);
    return {
        T(h.beta1), T(1.0 - h.beta1), T(h.beta2), T(1.0 - h.beta2), T(h.lr * square_root(correction2) / correction1),
        T(h.eps)};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& exp_avg, T& exp_avg_sq) {
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g;
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g);
    return c.step_size * (exp_avg / (square_root(exp_avg_sq) + c.eps));
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
