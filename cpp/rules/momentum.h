// Polyak, "Some methods of speeding up the convergence of iteration methods", 1964: the learning rate is inside the
// velocity, v <- momentum v - lr g, p <- p + v. Nesterov's form as rearranged by Bengio, Boulanger-Lewandowski and
// Pascanu, "Advances in optimizing recurrent networks", 2013: p <- p - momentum v + (1 + momentum) v'.
#pragma once

#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Momentum : RuleBase {
  static constexpr const char* name = "momentum";

  struct Hypers {
    double lr, momentum, weight_decay, nesterov;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"momentum", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative},
                                     {"nesterov", Domain::flag}};
  static constexpr const char* states[] = {"velocity"};
  static constexpr int first_moment = 0;
  static constexpr double moment_sign = -1.0;

  enum Variant { classical, nesterov };
  static constexpr unsigned keeps[] = {0b1, 0b1};
  static int variant(const Hypers& h) { return h.nesterov != 0 ? nesterov : classical; }
  static double coupled_decay(const Hypers& h) { return h.weight_decay; }

  template <class T>
  struct Coefficients {
    T lr, momentum, one_plus_momentum;
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment) {
    return {T(h.lr), T(h.momentum), T(1.0 + h.momentum)};
  }

  template <int V, class T>
  static void update(const Coefficients<T>& c, T g, T& p, T& velocity) {
    const T before = velocity;
    velocity = c.momentum * velocity - c.lr * g;
    if constexpr (V == nesterov) {
      p = p - c.momentum * before + c.one_plus_momentum * velocity;
    } else {
      p = p + velocity;
    }
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
