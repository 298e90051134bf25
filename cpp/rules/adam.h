// Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1.
#pragma once

#include "rules/maths.h"
#include "rules/power.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Adam {
  static constexpr const char* name = "adam";

  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative, 1},
                                     {"betas", Domain::unit_interval, 2},
                                     {"eps", Domain::non_negative, 1},
                                     {"weight_decay", Domain::non_negative, 1}};
  static constexpr const char* states[] = {"exp_avg", "exp_avg_sq"};
  static constexpr unsigned keeps[] = {0b11};
  static int variant(const Hypers&) { return 0; }
  static const char* refuse(const Hypers&) { return nullptr; }

  static double coupled_decay(const Hypers& h) { return h.weight_decay; }

  template <class T>
  struct Coefficients {
    T beta1, rest1, beta2, rest2;
    T step_size;  // lr / (1 - beta1^t)
    T to_v_hat;   // 1 / sqrt(1 - beta2^t)
    T eps;
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    const double correction1 = 1.0 - integer_power(h.beta1, now.step);
    const double correction2 = 1.0 - integer_power(h.beta2, now.step);
    return {T(h.beta1),       T(1.0 - h.beta1),      T(h.beta2),
            T(1.0 - h.beta2), T(h.lr / correction1), T(1.0 / square_root(correction2)),
            T(h.eps)};
  }

  template <int V, class T>
  static void update(const Coefficients<T>& c, T g, T& p, T& exp_avg, T& exp_avg_sq) {
    exp_avg = c.beta1 * exp_avg + c.rest1 * g;
    exp_avg_sq = c.beta2 * exp_avg_sq + c.rest2 * (g * g);
    p = p - c.step_size * (exp_avg / (square_root(exp_avg_sq) * c.to_v_hat + c.eps));
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
