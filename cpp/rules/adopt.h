// Taniguchi, Harada, Minegishi, Oshima, Jeong, Nagahara, Iiyama, Suzuki, Iwasawa and Matsuo, "ADOPT: Modified Adam Can
// Converge with Any beta2 with the Optimal Rate", NeurIPS 2024, algorithm 2, clipped at (t - 1)^(1/4).
#pragma once

#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Adopt : RuleBase {
  static constexpr const char* name = "adopt";

  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"betas", Domain::unit_interval, 2},
                                     {"eps", Domain::positive},
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
    T lr, beta1, one_minus_beta1, beta2, one_minus_beta2, eps;
    T clip;  // (t - 1)^(1/4); 0 at the first step, which only starts the second moment
    T keep;  // 1 - lr weight_decay, decoupled
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    const bool starts = now.first || now.step == 1;
    return {T(h.lr),
            T(h.beta1),
            T(1.0 - h.beta1),
            T(starts ? 0.0 : h.beta2),
            T(starts ? 1.0 : 1.0 - h.beta2),
            T(h.eps),
            T(starts ? 0.0 : square_root(square_root(double(now.step - 1)))),
            T(h.decoupled_weight_decay != 0 && !starts ? 1.0 - h.lr * h.weight_decay : 1.0)};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& exp_avg, T& exp_avg_sq) {
    const T normed = smaller(larger(g / larger(square_root(exp_avg_sq), c.eps), -c.clip), c.clip);
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * (g * g);
    const T mixed = blend(exp_avg, normed, c.one_minus_beta1);
    exp_avg = c.clip == T(0) ? exp_avg : mixed;
    const T move = c.lr * exp_avg;
    return c.clip == T(0) ? T(0) : move;
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
