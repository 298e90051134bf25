// Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, "The Road Less Scheduled", NeurIPS 2024, with the weights of
// the average of the authors' code. The parameter is y while training.
#pragma once

#include "maths/power.h"
#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct ScheduleFreeAdamW : RuleBase {
  static constexpr const char* name = "schedule_free_adamw";

  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, warmup_steps, r, weight_lr_power;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"betas", Domain::unit_interval, 2},
                                     {"eps", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative},
                                     {"warmup_steps", Domain::whole},
                                     {"r", Domain::non_negative},
                                     {"weight_lr_power", Domain::non_negative}};
  static constexpr const char* states[] = {"z", "exp_avg_sq"};
  static constexpr unsigned squares = 0b10;
  static constexpr unsigned keeps[] = {0b11};
  static constexpr unsigned copies = 0b01;
  static constexpr const char* scalars[] = {"weight_sum", "lr_max"};
  static const char* refuse(const Hypers& h) {
    return h.beta1 > 0.0 ? nullptr : "betas: expected the first to be more than 0";
  }

  template <class T>
  struct Coefficients {
    T beta2, one_minus_beta2;
    T rsqrt_correction2;  // 1 / sqrt(1 - beta2^t)
    T eps, weight_decay;
    T weight;  // of this step in the average: c
    T step_y;  // lr (1 - beta1 (1 - c))
    T step_z;  // lr
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now, double* kept) {
    const double t = double(now.step);
    const double lr = t < h.warmup_steps ? h.lr * (t / h.warmup_steps) : h.lr;
    kept[1] = lr > kept[1] ? lr : kept[1];
    const double weight = real_power(t, h.r) * real_power(kept[1], h.weight_lr_power);
    kept[0] = kept[0] + weight;
    const double c = kept[0] > 0.0 ? weight / kept[0] : 0.0;
    return {T(h.beta2),
            T(1.0 - h.beta2),
            T(1.0 / square_root(1.0 - integer_power(h.beta2, now.step))),
            T(h.eps),
            T(h.weight_decay),
            T(c),
            T(lr * (1.0 - h.beta1 * (1.0 - c))),
            T(lr)};
  }

  template <int V, class T>
  static void update(const Coefficients<T>& c, T g, T& p, T& z, T& exp_avg_sq) {
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g);
    const T scaled = g / (square_root(exp_avg_sq) * c.rsqrt_correction2 + c.eps) + c.weight_decay * p;
    p = blend(p, z, c.weight) - c.step_y * scaled;
    z = z - c.step_z * scaled;
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
