// A parameter in a step, and what errors call its arrays.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bind/arrays.h"
#include "runtime/registry.h"

namespace fusedstep::bind {

// The elements from `offset` on of a larger tensor, in the order of its memory. `number` is that tensor's place among
// all of the step, `whole` how many elements it has; below 0: the parameter is all of it. `follows`: a master takes
// over what somebody else wrote into its parameter; else the parameter is only written. `first`: some state of the
// whole begins with this step.
struct Part {
  std::int64_t number = -1, offset = 0, whole = -1;
  bool follows = true, first = false;
  double squares = 0.0;  // of the gradient's elements before `offset`, where they are measured in parts
};

// One parameter that has a gradient this time. Null states are made when all checks have passed.
struct Item {
  int group = 0;
  py::ssize_t index = 0;
  int variant = 0;
  py::object owner;        // the parameter as it was given; `param` is its memory, as a NumPy array
  py::object param, grad;  // held: other threads may drop theirs while the step runs
  py::object entry;        // of the optimizer's state; null where it has none yet
  py::object rows;         // of the parameter, where the gradient is row-sparse
  py::object state[kMaxStates];
  py::object scales[kMaxStates];  // of states of 8 bits
  py::object ema, master;
  py::object scalar_array[kMaxScalars];  // where a function's scalars are
  std::int64_t step = 0;
  bool first = false;
  bool ema_made = false, master_made = false;
  Part part;
  double scalars[kMaxScalars] = {};   // before the step
  double advanced[kMaxScalars] = {};  // after it
};

// Whether the variant of an item has the s-th state.
inline bool keeps(const runtime::Rule& rule, const Item& item, int s) {
  return rule.keeps[std::size_t(item.variant)] >> s & 1;
}

// Whether it keeps a first moment.
inline bool keeps_moment(const runtime::Rule& rule, const Item& item) {
  return rule.first_moment >= 0 && keeps(rule, item, rule.first_moment);
}

// How errors name an argument: params[2] and state[2]['exp_avg'], or param[2] and exp_avg[2]; where parameters are the
// keys of the state, state['w']['exp_avg'].
enum class Naming { optimizer, function, tensors };

// The role of an array beside its parameter. State s is s; a function's scalars follow the states; the scales of state
// s are kScales + s; the others are these.
enum Role { kParam = -1, kGrad = -2, kAverage = -3, kMaster = -4, kScales = 16 };

class Labels {
 public:
  Labels(const runtime::Rule& rule, Naming naming);
  Label of(py::ssize_t index, int role) const;
  Label param(const Item& item) const { return {param_, item.index, nullptr, groups_.ptr()}; }
  Label grad(const Item& item) const { return {grad_, item.index, nullptr, groups_.ptr()}; }
  const std::string& scales(int s) const { return scales_names_[std::size_t(s)]; }
  // The groups whose names errors use; borrowed.
  void name_after(py::handle groups) { groups_ = groups; }

 private:
  const runtime::Rule& rule_;
  const bool function_, tensors_;
  const char* const param_;
  const char* const grad_;
  py::handle groups_;
  std::vector<std::string> scales_names_;
};

}  // namespace fusedstep::bind
