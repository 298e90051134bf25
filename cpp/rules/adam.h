// Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1. AMSGrad: Reddi, Kale and Kumar,
// "On the Convergence of Adam and Beyond", ICLR 2018, algorithm 2, with the bias corrections of Adam.
#pragma once

#include "maths/power.h"
#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Adam : RuleBase {
  static constexpr const char* name = "adam";

  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, amsgrad, decoupled_weight_decay;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},  {"betas", Domain::unit_interval, 2},
                                     {"eps", Domain::non_negative}, {"weight_decay", Domain::non_negative},
                                     {"amsgrad", Domain::flag},     {"decoupled_weight_decay", Domain::flag}};
  static constexpr const char* states[] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static constexpr unsigned squares = 0b110;
  static constexpr int first_moment = 0;
  static constexpr bool cautious = true;

  enum Variant { plain, amsgrad };
  static constexpr unsigned keeps[] = {0b011, 0b111};
  static int variant(const Hypers& h) { return h.amsgrad != 0 ? amsgrad : plain; }
  static double coupled_decay(const Hypers& h) { return h.decoupled_weight_decay != 0 ? 0.0 : h.weight_decay; }

  template <class T>
  struct Coefficients {
    T beta1, one_minus_beta1, beta2, one_minus_beta2;
    T step_size;          // lr / (1 - beta1^t)
    T rsqrt_correction2;  // 1 / sqrt(1 - beta2^t)
    T eps;
    T keep;  // 1 - lr weight_decay, decoupled
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    const double correction1 = 1.0 - integer_power(h.beta1, now.step);
    const double correction2 = 1.0 - integer_power(h.beta2, now.step);
    return {T(h.beta1),
            T(1.0 - h.beta1),
            T(h.beta2),
            T(1.0 - h.beta2),
            T(h.lr / correction1),
            T(1.0 / square_root(correction2)),
            T(h.eps),
            T(h.decoupled_weight_decay != 0 ? 1.0 - h.lr * h.weight_decay : 1.0)};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& exp_avg, T& exp_avg_sq) {
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g;
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g);
    return c.step_size * (exp_avg / (square_root(exp_avg_sq) * c.rsqrt_correction2 + c.eps));
  }
  // The largest v so far, uncorrected: its correction is that of the present step.
  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& exp_avg, T& exp_avg_sq, T& max_exp_avg_sq) {
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g;
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g);
    max_exp_avg_sq = larger(max_exp_avg_sq, exp_avg_sq);
    return c.step_size * (exp_avg / (square_root(max_exp_avg_sq) * c.rsqrt_correction2 + c.eps));
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
