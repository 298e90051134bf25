// Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein, "Muon: An optimizer for hidden layers in neural networks",
// 2024. NumPy computes its update, which is matrix products.
#pragma once

#include "rules/rule.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Muon : RuleBase {
  static constexpr const char* name = "muon";
  static constexpr bool native = false;
  static constexpr const char* adjustments[] = {"original", "match_rms_adamw", nullptr};

  struct Hypers {
    double lr, weight_decay, momentum, nesterov, a, b, c, eps, ns_steps, adjust_lr_fn;
  };
  static constexpr Field fields[] = {{"lr", Domain::non_negative},
                                     {"weight_decay", Domain::non_negative},
                                     {"momentum", Domain::unit_interval},
                                     {"nesterov", Domain::flag},
                                     {"ns_coefficients", Domain::finite, 3},
                                     {"eps", Domain::non_negative},
                                     {"ns_steps", Domain::whole},
                                     {"adjust_lr_fn", Domain::choice, 1, true, adjustments}};
  static constexpr const char* states[] = {"momentum_buffer"};
  static constexpr int first_moment = 0;
  static constexpr unsigned keeps[] = {0b1};
  static const char* refuse_axes(int axes) { return axes == 2 ? nullptr : "Muon updates matrices only"; }
};

}  // namespace fusedstep::FUSEDSTEP_SET
