// You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, algorithm 1, with momentum in
// PyTorch's convention.
#pragma once

#include "maths/scalar.h"
#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Lars : RuleBase {
  static constexpr const char* name = "lars";

  struct Hypers {
    double lr, momentum, dampening, weight_decay, nesterov, trust_coefficient, eps;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},  {"momentum", Domain::non_negative},
                                     {"dampening", Domain::finite}, {"weight_decay", Domain::non_negative},
                                     {"nesterov", Domain::flag},    {"trust_coefficient", Domain::non_negative},
                                     {"eps", Domain::non_negative}};
  static constexpr const char* states[] = {"momentum_buffer"};
  static constexpr int first_moment = 0;

  enum Variant { plain, momentum, nesterov };
  static constexpr unsigned keeps[] = {0b0, 0b1, 0b1};
  static int variant(const Hypers& h) { return h.momentum == 0 ? plain : h.nesterov != 0 ? nesterov : momentum; }
  static const char* refuse(const Hypers& h) {
    if (h.nesterov != 0 && (h.momentum == 0 || h.dampening != 0)) {
      return "nesterov=True needs momentum > 0 and dampening = 0";
    }
    return nullptr;
  }

  template <class T>
  struct Coefficients {
    T lr, momentum, gain, weight_decay;
    T ratio;  // of trust: trust_coefficient |p| / (|g| + weight_decay |p| + eps)
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    return {T(h.lr), T(h.momentum), T(now.first ? 1.0 : 1.0 - h.dampening), T(h.weight_decay), T(0)};
  }

  static constexpr int sums = 2;  // |p|^2, |g|^2
  static constexpr bool norms = true;
  template <int V, class T, class... State>
  static void measure(const Coefficients<T>&, T& a0, T& b0, T& a1, T& b1, T g, T p, State...) {
    a0 = b0 = p;
    a1 = b1 = g;
  }
  template <class T>
  static void settle(const Hypers& h, Coefficients<T>& c, const double* norms, const double*) {
    const double p_norm = norms[0], g_norm = norms[1];
    double ratio = 1.0;
    if (p_norm > 0.0 && g_norm > 0.0) {
      ratio = h.trust_coefficient * p_norm / (g_norm + h.weight_decay * p_norm + h.eps);
    }
    c.ratio = T(ratio);
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T p) {
    return c.lr * (c.ratio * (g + c.weight_decay * p));
  }
  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T p, T& momentum_buffer) {
    const T scaled = c.ratio * (g + c.weight_decay * p);
    momentum_buffer = c.momentum * momentum_buffer + c.gain * scaled;
    if constexpr (V == nesterov) return c.lr * (scaled + c.momentum * momentum_buffer);
    return c.lr * momentum_buffer;
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
