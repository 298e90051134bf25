// What a rule file declares. See cpp/README.md for the shape of a rule.
#pragma once

#include <cstdint>

namespace fusedstep {

// The values that a hyper-parameter may have; the binding checks them before anything is written.
enum class Domain { non_negative, positive, unit_interval, finite, growth, whole, flag, choice };

// One hyper-parameter as users write it. `count` > 1 is a tuple (betas). None, where it is `optional`, is passed as
// NaN; a choice is passed as its index in `choices`, which ends with null.
struct Field {
  const char* name;
  Domain domain;
  int count = 1;
  bool optional = false;
  const char* const* choices = nullptr;
};

// The shape of a state: the parameter's, or the parameter's with one column, or with one row.
enum class Shape { same, rows, columns };

// When an update happens: `step` counts from 1; `first` says that the states are fresh.
struct Moment {
  std::int64_t step;
  bool first;
};

inline constexpr int kMaxStates = 4;
inline constexpr int kMaxScalars = 3;
inline constexpr int kMaxVariants = 4;
inline constexpr int kMaxHypers = 16;
inline constexpr int kMaxCoefficientBytes = 128;

// What a rule is unless it says otherwise.
struct RuleBase {
  // Scalars that are kept from step to step beside the state arrays: a double for each parameter, or, with
  // `shared_scalars`, one for all parameters.
  static constexpr const char* scalars[] = {nullptr};
  static constexpr bool shared_scalars = false;
  template <class Hypers>
  static double initial_scalar(const Hypers&, int) {
    return 0.0;
  }
  // Whether states begin with the learning rate. Under a schedule they begin anew in every step at which it has risen.
  static constexpr bool begins_with_lr = false;
  // States begin as zeros, as initial(), or, those of the bits in `copies`, as the parameter.
  static constexpr unsigned copies = 0;
  template <class Hypers>
  static double initial(const Hypers&, int) {
    return 0.0;
  }
  // Bits of states. `exact`: stored in the dtype of the arithmetic whatever state_dtype says, as copies are. `squares`:
  // never below 0.
  static constexpr unsigned exact = 0, squares = 0;
  // Why states cannot be stored in 16 or 8 bits a number, or null.
  template <class Hypers>
  static const char* refuse_bits(const Hypers&, int) {
    return nullptr;
  }
  // For telemetry: which state is the average of the gradients, and its sign: -1 where it averages -g.
  static constexpr int first_moment = -1;
  static constexpr double moment_sign = 1.0;
  static constexpr Shape shapes[] = {Shape::same, Shape::same, Shape::same, Shape::same};
  // Sums over the whole tensor that the update needs; measure() gives their terms.
  static constexpr int sums = 0;
  // The sums are of squares, and settle() takes their roots. They are then right for numbers whose squares overflow,
  // too.
  static constexpr bool norms = false;
  static constexpr bool cautious = false;
  // Whether it takes row-sparse gradients, and dense ones.
  static constexpr bool sparse = false, dense = true;
  // False: the update is NumPy's alone, on every instruction set.
  static constexpr bool native = true;

  template <class Hypers>
  static int variant(const Hypers&) {
    return 0;
  }
  // The variant for a parameter of so many axes, or -1: the number of axes does not matter.
  template <class Hypers>
  static int variant_of(const Hypers&, int) {
    return -1;
  }
  // Why a parameter of so many axes is refused, or null.
  static const char* refuse_axes(int) { return nullptr; }
  template <class Hypers>
  static const char* refuse(const Hypers&) {
    return nullptr;
  }
  // Why a row-sparse gradient does not go with these values, or null.
  template <class Hypers>
  static const char* refuse_sparse(const Hypers&) {
    return nullptr;
  }
  template <class Hypers>
  static double coupled_decay(const Hypers&) {
    return 0.0;
  }
};

// The rule whose loops a rule runs: itself, or the one that it names as `Loops`, whose equation is the same.
template <class Rule>
struct LoopsOfRule {
  using type = Rule;
};
template <class Rule>
  requires requires { typename Rule::Loops; }
struct LoopsOfRule<Rule> {
  using type = typename Rule::Loops;
};
template <class Rule>
using LoopsOf = typename LoopsOfRule<Rule>::type;

template <class... Rules>
struct RuleList {
  static constexpr int size = sizeof...(Rules);
};

}  // namespace fusedstep
