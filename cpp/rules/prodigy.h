// Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", ICML 2024, algorithm 4 (Adam),
// as in the authors' code.
#pragma once

#include "maths/power.h"
#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Prodigy : RuleBase {
  static constexpr const char* name = "prodigy";

  struct Hypers {
    double lr, beta1, beta2, beta3, eps, weight_decay, use_bias_correction, safeguard_warmup, d0, d_coef, growth_rate;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"betas", Domain::unit_interval, 2},
                                     {"beta3", Domain::unit_interval, 1, true},
                                     {"eps", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative},
                                     {"use_bias_correction", Domain::flag},
                                     {"safeguard_warmup", Domain::flag},
                                     {"d0", Domain::positive},
                                     {"d_coef", Domain::positive},
                                     {"growth_rate", Domain::growth}};
  static constexpr const char* states[] = {"exp_avg", "exp_avg_sq", "s", "p0"};
  static constexpr unsigned squares = 0b0010;
  static constexpr unsigned exact = 0b0100;  // the sum of its entries decides the step size
  static constexpr int first_moment = 0;
  static constexpr unsigned keeps[] = {0b1111};
  static constexpr unsigned copies = 0b1000;
  static constexpr const char* scalars[] = {"d", "d_max", "d_numerator"};
  static constexpr bool shared_scalars = true;
  static double initial_scalar(const Hypers& h, int k) { return k == 2 ? 0.0 : h.d0; }

  static double decay3(const Hypers& h) { return h.beta3 == h.beta3 ? h.beta3 : square_root(h.beta2); }
  // lr, bias correction included
  static double rate(const Hypers& h, Moment now) {
    if (h.use_bias_correction == 0) return h.lr;
    return h.lr * square_root(1.0 - integer_power(h.beta2, now.step)) / (1.0 - integer_power(h.beta1, now.step));
  }

  template <class T>
  struct Coefficients {
    T beta1, grad_weight;    // d (1 - beta1)
    T beta2, square_weight;  // d^2 (1 - beta2)
    T beta3, s_weight;       // (d / d0) d lr
    T eps;                   // eps times the new d
    T step_size;             // d lr
    T keep;                  // 1 - d lr weight_decay
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now, double* kept) {
    const double d = kept[0], d_lr = d * rate(h, now);
    return {T(h.beta1),
            T(d * (1.0 - h.beta1)),
            T(h.beta2),
            T(d * d * (1.0 - h.beta2)),
            T(decay3(h)),
            T(d / h.d0 * (h.safeguard_warmup != 0 ? d : d_lr)),
            T(0),
            T(d_lr),
            T(1.0 - d_lr * h.weight_decay)};
  }

  // <g, p0 - p>, |s|_1
  static constexpr int sums = 2;
  template <int V, class T>
  static void measure(const Coefficients<T>& c, T& a0, T& b0, T& a1, T& b1, T g, T p, T, T, T s, T p0) {
    a0 = g;
    b0 = p0 - p;
    a1 = absolute(c.beta3 * s + c.s_weight * g);
    b1 = T(1);
  }
  // Weights the sums of one tensor before they are added up over all tensors.
  static void weigh(const Hypers& h, Moment now, const double* kept, double* total) {
    total[0] = kept[0] / h.d0 * (kept[0] * rate(h, now)) * total[0];
    if (h.lr == 0.0) total[1] = 0.0;
  }
  static void share(const Hypers& h, const double* total, double* kept) {
    if (!(total[1] > 0.0)) return;
    kept[2] = decay3(h) * kept[2] + total[0];
    const double d_hat = h.d_coef * kept[2] / total[1];
    double d = kept[0];
    if (d == h.d0 && d_hat > d) d = d_hat;
    if (d_hat > kept[1]) kept[1] = d_hat;
    const double grown = d * h.growth_rate;
    kept[0] = grown < kept[1] ? grown : kept[1];
  }
  template <class T>
  static void settle(const Hypers& h, Coefficients<T>& c, const double*, const double* kept) {
    c.eps = T(kept[0] * h.eps);
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& exp_avg, T& exp_avg_sq, T& s, T&) {
    exp_avg = c.beta1 * exp_avg + c.grad_weight * g;
    exp_avg_sq = c.beta2 * exp_avg_sq + c.square_weight * (g * g);
    s = c.beta3 * s + c.s_weight * g;
    return c.step_size * (exp_avg / (square_root(exp_avg_sq) + c.eps));
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
