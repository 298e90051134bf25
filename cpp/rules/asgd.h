// Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 1992, with the
// learning rate of Bottou's and PyTorch's ASGD: a step computes eta and mu for the next one.
#pragma once

#include "maths/power.h"
#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Asgd : RuleBase {
  static constexpr const char* name = "asgd";

  struct Hypers {
    double lr, lambd, alpha, t0, weight_decay;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"lambd", Domain::non_negative},
                                     {"alpha", Domain::non_negative},
                                     {"t0", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative}};
  static constexpr const char* states[] = {"ax"};
  static constexpr unsigned exact = 0b1;
  static constexpr unsigned keeps[] = {0b1};
  static constexpr const char* scalars[] = {"eta", "mu"};
  static double initial_scalar(const Hypers& h, int k) { return k == 0 ? h.lr : 1.0; }
  static double coupled_decay(const Hypers& h) { return h.weight_decay; }
  static const char* refuse_bits(const Hypers&, int) {
    return "its state is an average of the parameters, in which a step would be rounded away";
  }

  template <class T>
  struct Coefficients {
    T shrink;  // 1 - lambd eta
    T eta, mu;
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now, double* kept) {
    const double eta = kept[0], mu = kept[1];
    const double t = double(now.step);
    kept[0] = h.lr / real_power(1.0 + h.lambd * h.lr * t, h.alpha);
    kept[1] = t - h.t0 > 1.0 ? 1.0 / (t - h.t0) : 1.0;
    return {T(1.0 - h.lambd * eta), T(eta), T(mu)};
  }

  template <int V, class T>
  static void update(const Coefficients<T>& c, T g, T& p, T& ax) {
    p = c.shrink * p - c.eta * g;
    // With mu = 1 the average is the parameter, without the rounding of a difference and a sum.
    ax = c.mu == T(1) ? p : blend(ax, p, c.mu);
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
