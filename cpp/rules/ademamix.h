// Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", ICLR 2025, algorithm 1, with the
// schedules of its alpha and beta3.
#pragma once

#include "maths/power.h"
#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct AdEMAMix : RuleBase {
  static constexpr const char* name = "ademamix";

  struct Hypers {
    double lr, beta1, beta2, beta3, alpha, eps, weight_decay, t_alpha, t_beta3;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},           {"betas", Domain::unit_interval, 3},
                                     {"alpha", Domain::non_negative},        {"eps", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative}, {"t_alpha", Domain::whole, 1, true},
                                     {"t_beta3", Domain::whole, 1, true}};
  static constexpr const char* states[] = {"exp_avg_fast", "exp_avg_sq", "exp_avg_slow"};
  static constexpr unsigned squares = 0b010;
  static constexpr int first_moment = 0;
  static constexpr unsigned keeps[] = {0b111};
  static constexpr bool cautious = true;
  static const char* refuse(const Hypers& h) {
    if (h.t_beta3 == h.t_beta3 && !(h.beta1 > 0.0 && h.beta3 > h.beta1)) {
      return "t_beta3: its schedule needs 0 < beta1 < beta3";
    }
    return nullptr;
  }

  // From beta1 to beta3, so that the half-life grows linearly.
  static double beta3_at(const Hypers& h, double t) {
    if (!(t < h.t_beta3)) return h.beta3;
    const double part = t / h.t_beta3, log1 = log_two(h.beta1).high, log3 = log_two(h.beta3).high;
    const double exponent = log1 * log3 / ((1.0 - part) * log3 + part * log1);
    const double scheduled = exp_two({exponent, 0.0}).high;
    return scheduled < h.beta3 ? scheduled : h.beta3;
  }

  template <class T>
  struct Coefficients {
    T beta1, one_minus_beta1, beta2, one_minus_beta2, one_minus_beta3;
    T alpha;
    T inv_correction1;    // 1 / (1 - beta1^t)
    T rsqrt_correction2;  // 1 / sqrt(1 - beta2^t)
    T eps, lr;
    T keep;  // 1 - lr weight_decay
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    const double t = double(now.step), beta3 = beta3_at(h, t);
    return {T(h.beta1),
            T(1.0 - h.beta1),
            T(h.beta2),
            T(1.0 - h.beta2),
            T(1.0 - beta3),
            T(t < h.t_alpha ? t * h.alpha / h.t_alpha : h.alpha),
            T(1.0 / (1.0 - integer_power(h.beta1, now.step))),
            T(1.0 / square_root(1.0 - integer_power(h.beta2, now.step))),
            T(h.eps),
            T(h.lr),
            T(1.0 - h.lr * h.weight_decay)};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& exp_avg_fast, T& exp_avg_sq, T& exp_avg_slow) {
    exp_avg_fast = c.beta1 * exp_avg_fast + c.one_minus_beta1 * g;
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g);
    exp_avg_slow = blend(exp_avg_slow, g, c.one_minus_beta3);
    const T mixed = exp_avg_fast * c.inv_correction1 + c.alpha * exp_avg_slow;
    return c.lr * (mixed / (square_root(exp_avg_sq) * c.rsqrt_correction2 + c.eps));
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
