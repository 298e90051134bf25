// What a rule file declares. See cpp/README.md for the shape of a rule.
#pragma once

#include <cstdint>

namespace fusedstep {

// Where a hyper-parameter may lie; the binding checks it before anything is written.
enum class Domain { non_negative, unit_interval, finite, flag };

// One hyper-parameter as users write it. `count` > 1 is a tuple (betas).
struct Field {
  const char* name;
  Domain domain;
  int count;
};

// When an update happens: `step` counts from 1; `first` says that the states are fresh zeros.
struct Moment {
  std::int64_t step;
  bool first;
};

inline constexpr int kMaxStates = 4;
inline constexpr int kMaxVariants = 4;
inline constexpr int kMaxHypers = 12;
inline constexpr int kMaxCoefficientBytes = 128;

template <class... Rules>
struct RuleList {
  static constexpr int size = sizeof...(Rules);
};

}  // namespace fusedstep
