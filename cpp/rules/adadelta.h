// Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, algorithm 1; lr scales its step, as PyTorch does.
#pragma once

#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Adadelta : RuleBase {
  static constexpr const char* name = "adadelta";

  struct Hypers {
    double lr, rho, eps, weight_decay;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"rho", Domain::unit_interval},
                                     {"eps", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative}};
  static constexpr const char* states[] = {"square_avg", "acc_delta"};
  static constexpr unsigned squares = 0b11;
  static constexpr unsigned keeps[] = {0b11};
  static double coupled_decay(const Hypers& h) { return h.weight_decay; }

  template <class T>
  struct Coefficients {
    T lr, rho, one_minus_rho, eps;
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment) {
    return {T(h.lr), T(h.rho), T(1.0 - h.rho), T(h.eps)};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& square_avg, T& acc_delta) {
    square_avg = c.rho * square_avg + c.one_minus_rho * (g * g);
    // The two roots share a division: sqrt(a) / sqrt(b) = sqrt(a / b).
    const T delta = square_root((acc_delta + c.eps) / (square_avg + c.eps)) * g;
    acc_delta = c.rho * acc_delta + c.one_minus_rho * (delta * delta);
    return c.lr * delta;
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
