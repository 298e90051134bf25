// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.
#pragma once

#include "rules/adam.h"

namespace fusedstep::FUSEDSTEP_SET {

struct AdamW : Adam {
  static constexpr const char* name = "adamw";
  // The equation is Adam's.
  using Loops = Adam;

  // Adam's without decoupled_weight_decay, which is always on here.
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"betas", Domain::unit_interval, 2},
                                     {"eps", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative},
                                     {"amsgrad", Domain::flag}};
  static double coupled_decay(const Hypers&) { return 0.0; }

  template <class T>
  static Coefficients<T> coefficients(Hypers h, Moment now) {
    h.decoupled_weight_decay = 1.0;
    return Adam::coefficients<T>(h, now);
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
