// Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013,
// in PyTorch's convention: b <- momentum b + (1 - dampening) g, p <- p - lr b (or, Nesterov, p - lr (g + momentum b)).
#pragma once

#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Sgd : RuleBase {
  static constexpr const char* name = "sgd";

  struct Hypers {
    double lr, momentum, dampening, weight_decay, nesterov;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"momentum", Domain::non_negative},
                                     {"dampening", Domain::finite},
                                     {"weight_decay", Domain::non_negative},
                                     {"nesterov", Domain::flag}};
  static constexpr const char* states[] = {"momentum_buffer"};
  static constexpr int first_moment = 0;
  static constexpr bool sparse = true;

  enum Variant { plain, momentum, nesterov };
  static constexpr unsigned keeps[] = {0b0, 0b1, 0b1};
  static int variant(const Hypers& h) { return h.momentum == 0 ? plain : h.nesterov != 0 ? nesterov : momentum; }

  static const char* refuse(const Hypers& h) {
    if (h.nesterov != 0 && (h.momentum == 0 || h.dampening != 0)) {
      return "nesterov=True needs momentum > 0 and dampening = 0";
    }
    return nullptr;
  }
  static const char* refuse_sparse(const Hypers& h) {
    if (h.momentum != 0) return "momentum must be 0: it would move rows that have no gradient";
    if (h.weight_decay != 0) return "weight_decay must be 0: it would move rows that have no gradient";
    return nullptr;
  }
  static double coupled_decay(const Hypers& h) { return h.weight_decay; }

  template <class T>
  struct Coefficients {
    T lr, momentum, gain;
  };
  template <class T>
  static Coefficients<T> coefficients(const Hypers& h, Moment now) {
    // The first gradient starts the buffer undamped.
    return {T(h.lr), T(h.momentum), T(now.first ? 1.0 : 1.0 - h.dampening)};
  }

  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T) {
    static_assert(V == plain);
    return c.lr * g;
  }
  template <int V, class T>
  static T direction(const Coefficients<T>& c, T g, T, T& momentum_buffer) {
    momentum_buffer = c.momentum * momentum_buffer + c.gain * g;
    if constexpr (V == nesterov) return c.lr * (g + c.momentum * momentum_buffer);
    return c.lr * momentum_buffer;
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
