// You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer and Hsieh, "Large Batch Optimization for Deep
// Learning: Training BERT in 76 minutes", ICLR 2020, algorithm 2.
#pragma once

#include "rules/adam.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Lamb : RuleBase {
  static constexpr const char* name = "lamb";

  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"betas", Domain::unit_interval, 2},
                                     {"eps", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative}};
  static constexpr const char* states[] = {"exp_avg", "exp_avg_sq"};
  static constexpr unsigned squares = 0b10;
  static constexpr int first_moment = 0;
  static constexpr unsigned keeps[] = {0b11};

  template <class T>
  struct Coefficients {
    T beta1, one_minus_beta1, beta2, one_minus_beta2;
    T inv_correction1;    // 1 / (1 - beta1^t)
    T rsqrt_correction2;  // 1 / sqrt(1 - beta2^t)
    T eps, weight_decay;
    T step_size;  // lr |p| / |u|
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    return {T(h.beta1),
            T(1.0 - h.beta1),
            T(h.beta2),
            T(1.0 - h.beta2),
            T(1.0 / (1.0 - integer_power(h.beta1, now.step))),
            T(1.0 / square_root(1.0 - integer_power(h.beta2, now.step))),
            T(h.eps),
            T(h.weight_decay),
            T(0)};
  }

  template <class T>
  static T adapted(const Coefficients<T>& c, T g, T p, T& exp_avg, T& exp_avg_sq) {
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g;
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g);
    return exp_avg * c.inv_correction1 / (square_root(exp_avg_sq) * c.rsqrt_correction2 + c.eps) + c.weight_decay * p;
  }

  static constexpr int sums = 2;  // |p|^2, |u|^2
  static constexpr bool norms = true;
  template <int V, class T>
  static void measure(const Coefficients<T>& c, T& a0, T& b0, T& a1, T& b1, T g, T p, T exp_avg, T exp_avg_sq) {
    a0 = b0 = p;
    a1 = b1 = adapted(c, g, p, exp_avg, exp_avg_sq);
  }
  template <class T>
  static void settle(const Hypers& h, Coefficients<T>& c, const double* norms, const double*) {
    const double ratio = norms[0] > 0.0 && norms[1] > 0.0 ? norms[0] / norms[1] : 1.0;
    c.step_size = T(h.lr * ratio);
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T p, T& exp_avg, T& exp_avg_sq) {
    return c.step_size * adapted(c, g, p, exp_avg, exp_avg_sq);
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
