// Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR 2011.
#pragma once

#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Adagrad : RuleBase {
  static constexpr const char* name = "adagrad";
  static constexpr const char* accumulators[] = {"sum", "mean", nullptr};

  struct Hypers {
    double lr, lr_decay, weight_decay, initial_accumulator_value, eps, accumulator;
  };
  static constexpr Field fields[] = {
      {"lr", Domain::non_negative},           {"lr_decay", Domain::non_negative},
      {"weight_decay", Domain::non_negative}, {"initial_accumulator_value", Domain::non_negative},
      {"eps", Domain::non_negative},          {"accumulator", Domain::choice, 1, false, accumulators}};
  static constexpr const char* states[] = {"sum"};
  static constexpr unsigned squares = 0b1;
  static constexpr bool sparse = true;

  enum Variant { of_sum, of_mean };
  static constexpr unsigned keeps[] = {0b1, 0b1};
  static int variant(const Hypers& h) { return int(h.accumulator); }
  static double initial(const Hypers& h, int) { return h.initial_accumulator_value; }
  static const char* refuse_sparse(const Hypers& h) {
    return h.weight_decay != 0 ? "weight_decay must be 0: it would move rows that have no gradient" : nullptr;
  }
  static double coupled_decay(const Hypers& h) { return h.weight_decay; }

  template <class T>
  struct Coefficients {
    T lr, eps;
    T inv_step;  // 1 / t
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    const double taken = double(now.step - 1);
    return {T(h.lr / (1.0 + taken * h.lr_decay)), T(h.eps), T(1.0 / double(now.step))};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& total) {
    total = total + g * g;
    if constexpr (V == of_mean) return c.lr * (g / (square_root(total * c.inv_step) + c.eps));
    return c.lr * (g / (square_root(total) + c.eps));
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
