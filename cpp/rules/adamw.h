// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.
#pragma once

#include "rules/adam.h"

namespace fusedstep::FUSEDSTEP_SET {

struct AdamW : Adam {
  static constexpr const char* name = "adamw";

  static double coupled_decay(const Hypers&) { return 0.0; }

  template <class T>
  struct Coefficients : Adam::Coefficients<T> {
    T keep;  // 1 - lr weight_decay
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    return {Adam::coefficients<T>(h, now), T(1.0 - h.lr * h.weight_decay)};
  }

  template <int V, class T>
  static void update(const Coefficients<T>& c, T g, T& p, T& exp_avg, T& exp_avg_sq) {
    p = c.keep * p;
    Adam::update<V>(static_cast<const Adam::Coefficients<T>&>(c), g, p, exp_avg, exp_avg_sq);
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
