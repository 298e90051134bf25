// Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop, with its schedule of the momentum.
#pragma once

#include "maths/power.h"
#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct NAdam : RuleBase {
  static constexpr const char* name = "nadam";

  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled_weight_decay;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"betas", Domain::unit_interval, 2},
                                     {"eps", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative},
                                     {"momentum_decay", Domain::non_negative},
                                     {"decoupled_weight_decay", Domain::flag}};
  static constexpr const char* states[] = {"exp_avg", "exp_avg_sq"};
  static constexpr unsigned squares = 0b10;
  static constexpr int first_moment = 0;
  static constexpr unsigned keeps[] = {0b11};
  static constexpr bool cautious = true;
  static constexpr const char* scalars[] = {"mu_product"};
  static double initial_scalar(const Hypers&, int) { return 1.0; }
  static double coupled_decay(const Hypers& h) { return h.decoupled_weight_decay != 0 ? 0.0 : h.weight_decay; }

  template <class T>
  struct Coefficients {
    T beta1, one_minus_beta1, beta2, one_minus_beta2;
    T rsqrt_correction2;  // 1 / sqrt(1 - beta2^t)
    T eps;
    T lr_grad, lr_exp_avg;
    T keep;  // 1 - lr weight_decay, decoupled
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now, double* kept) {
    const double t = double(now.step);
    const double mu = h.beta1 * (1.0 - 0.5 * real_power(0.96, t * h.momentum_decay));
    const double mu_next = h.beta1 * (1.0 - 0.5 * real_power(0.96, (t + 1.0) * h.momentum_decay));
    const double product = kept[0] * mu;
    kept[0] = product;
    return {T(h.beta1),
            T(1.0 - h.beta1),
            T(h.beta2),
            T(1.0 - h.beta2),
            T(1.0 / square_root(1.0 - integer_power(h.beta2, now.step))),
            T(h.eps),
            T(h.lr * (1.0 - mu) / (1.0 - product)),
            T(h.lr * mu_next / (1.0 - product * mu_next)),
            T(h.decoupled_weight_decay != 0 ? 1.0 - h.lr * h.weight_decay : 1.0)};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& exp_avg, T& exp_avg_sq) {
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g;
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g);
    return (c.lr_grad * g + c.lr_exp_avg * exp_avg) / (square_root(exp_avg_sq) * c.rsqrt_correction2 + c.eps);
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
