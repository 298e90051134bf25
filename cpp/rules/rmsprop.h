// Tieleman and Hinton, "Lecture 6.5: RMSProp", Coursera 2012; centred after Graves, "Generating Sequences With
// Recurrent Neural Networks", 2013, equations 38 to 41.
#pragma once

#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct RmsProp : RuleBase {
  static constexpr const char* name = "rmsprop";

  struct Hypers {
    double lr, alpha, eps, weight_decay, momentum, centered;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},       {"alpha", Domain::unit_interval},
                                     {"eps", Domain::non_negative},      {"weight_decay", Domain::non_negative},
                                     {"momentum", Domain::non_negative}, {"centered", Domain::flag}};
  static constexpr const char* states[] = {"square_avg", "momentum_buffer", "grad_avg"};
  static constexpr unsigned squares = 0b001;
  static constexpr int first_moment = 1;

  enum Variant { plain, momentum, centered, centered_momentum };
  static constexpr unsigned keeps[] = {0b001, 0b011, 0b101, 0b111};
  static int variant(const Hypers& h) {
    return (h.momentum != 0 ? momentum : plain) + (h.centered != 0 ? centered : plain);
  }
  static double coupled_decay(const Hypers& h) { return h.weight_decay; }
  static const char* refuse_bits(const Hypers& h, int) {
    return h.centered != 0 ? "centered takes the difference of two states, of which rounding would leave nothing"
                           : nullptr;
  }

  template <class T>
  struct Coefficients {
    T lr, alpha, one_minus_alpha, eps, momentum;
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment) {
    return {T(h.lr), T(h.alpha), T(1.0 - h.alpha), T(h.eps), T(h.momentum)};
  }

  // g / (sigma + eps)
  template <class T>
  static T scaled(const Coefficients<T>& c, T g, T& square_avg) {
    square_avg = c.alpha * square_avg + c.one_minus_alpha * (g * g);
    return g / (square_root(square_avg) + c.eps);
  }
  template <class T>
  static T scaled(const Coefficients<T>& c, T g, T& square_avg, T& grad_avg) {
    square_avg = c.alpha * square_avg + c.one_minus_alpha * (g * g);
    grad_avg = c.alpha * grad_avg + c.one_minus_alpha * g;
    // Of a constant gradient the variance is 0, and rounding may bring it below.
    const T variance = square_avg - grad_avg * grad_avg;
    return g / (square_root(variance < T(0) ? T(0) : variance) + c.eps);
  }
  template <class T>
  static T heavy(const Coefficients<T>& c, T scaled_grad, T& momentum_buffer) {
    momentum_buffer = c.momentum * momentum_buffer + scaled_grad;
    return c.lr * momentum_buffer;
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& square_avg) {
    return c.lr * scaled(c, g, square_avg);
  }
  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& square_avg, T& other) {
    if constexpr (V == momentum) return heavy(c, scaled(c, g, square_avg), other);
    return c.lr * scaled(c, g, square_avg, other);
  }
  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& square_avg, T& momentum_buffer, T& grad_avg) {
    return heavy(c, scaled(c, g, square_avg, grad_avg), momentum_buffer);
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
