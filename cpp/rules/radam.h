// Liu, Jiang, He, Chen, Liu, Gao and Han, "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020,
// algorithm 2. As in PyTorch, the variance is rectified where rho > 5, and eps is added to the root before its
// correction.
#pragma once

#include "maths/power.h"
#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct RAdam : RuleBase {
  static constexpr const char* name = "radam";

  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"betas", Domain::unit_interval, 2},
                                     {"eps", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative},
                                     {"decoupled_weight_decay", Domain::flag}};
  static constexpr const char* states[] = {"exp_avg", "exp_avg_sq"};
  static constexpr unsigned squares = 0b10;
  static constexpr int first_moment = 0;
  static constexpr unsigned keeps[] = {0b11};
  static constexpr bool cautious = true;
  static double coupled_decay(const Hypers& h) { return h.decoupled_weight_decay != 0 ? 0.0 : h.weight_decay; }

  template <class T>
  struct Coefficients {
    T beta1, one_minus_beta1, beta2, one_minus_beta2, eps;
    T step_size;  // lr / (1 - beta1^t)
    T rectified;  // sqrt(1 - beta2^t) times the rectification; 0 while the variance is not tractable
    T keep;       // 1 - lr weight_decay, decoupled
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    const double power2 = integer_power(h.beta2, now.step), correction2 = 1.0 - power2;
    const double rho_inf = 2.0 / (1.0 - h.beta2) - 1.0;
    const double rho = rho_inf - 2.0 * double(now.step) * power2 / correction2;
    double rectified = 0.0;
    if (rho > 5.0) {
      rectified = square_root((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)) *
                  square_root(correction2);
    }
    return {T(h.beta1),   T(1.0 - h.beta1),
            T(h.beta2),   T(1.0 - h.beta2),
            T(h.eps),     T(h.lr / (1.0 - integer_power(h.beta1, now.step))),
            T(rectified), T(h.decoupled_weight_decay != 0 ? 1.0 - h.lr * h.weight_decay : 1.0)};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& exp_avg, T& exp_avg_sq) {
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g;
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g);
    const T adaptive = exp_avg * c.rectified / (square_root(exp_avg_sq) + c.eps);
    return c.step_size * (c.rectified == T(0) ? exp_avg : adaptive);
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
