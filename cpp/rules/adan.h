// Xie, Zhou, Li, Lin and Yan, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", TPAMI
// 2024, algorithm 1, with the bias corrections and the proximal decay of the authors' code.
#pragma once

#include "maths/power.h"
#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Adan : RuleBase {
  static constexpr const char* name = "adan";

  struct Hypers {
    double lr, beta1, beta2, beta3, eps, weight_decay;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"betas", Domain::unit_interval, 3},
                                     {"eps", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative}};
  static constexpr const char* states[] = {"exp_avg", "exp_avg_diff", "exp_avg_sq", "pre_grad"};
  static constexpr unsigned squares = 0b0100;
  static constexpr int first_moment = 0;
  static constexpr unsigned keeps[] = {0b1111};

  template <class T>
  struct Coefficients {
    T beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3;
    T rsqrt_correction3;  // 1 / sqrt(1 - beta3^t)
    T eps;
    T lr_avg, lr_diff;  // lr / (1 - beta1^t), lr beta2 / (1 - beta2^t)
    T shrink;           // 1 / (1 + lr weight_decay)
    T seen;             // 0 in the first step, which has no previous gradient
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    return {T(h.beta1),
            T(1.0 - h.beta1),
            T(h.beta2),
            T(1.0 - h.beta2),
            T(h.beta3),
            T(1.0 - h.beta3),
            T(1.0 / square_root(1.0 - integer_power(h.beta3, now.step))),
            T(h.eps),
            T(h.lr / (1.0 - integer_power(h.beta1, now.step))),
            T(h.lr * h.beta2 / (1.0 - integer_power(h.beta2, now.step))),
            T(1.0 / (1.0 + h.lr * h.weight_decay)),
            T(now.first ? 0.0 : 1.0)};
  }

  template <int V, class T>
  static void update(const Coefficients<T>& c, T g, T& p, T& exp_avg, T& exp_avg_diff, T& exp_avg_sq, T& pre_grad) {
    const T diff = c.seen == T(0) ? T(0) : g - pre_grad;
    const T ahead = g + c.beta2 * diff;
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g;
    exp_avg_diff = c.beta2 * exp_avg_diff + c.one_minus_beta2 * diff;
    exp_avg_sq = c.beta3 * exp_avg_sq + c.one_minus_beta3 * (ahead * ahead);
    pre_grad = g;
    const T scale = square_root(exp_avg_sq) * c.rsqrt_correction3 + c.eps;
    p = c.shrink * (p - (c.lr_avg * exp_avg + c.lr_diff * exp_avg_diff) / scale);
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
