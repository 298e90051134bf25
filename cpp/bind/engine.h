// A step of one rule over many tensors: everything is read and checked, then everything is computed.
#pragma once

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "bind/arrays.h"
#include "bind/commit.h"
#include "kernels/random.h"
#include "runtime/registry.h"
#include "runtime/step.h"

namespace fusedstep::bind {

// Options of a whole step: all groups agree on them.
struct WholeStep {
  double max_grad_norm = HUGE_VAL;
  bool clip = false;
  bool skip_nonfinite = false;
  bool telemetry = false;
};

// A group's hyper-parameters as this step found them.
struct Settings {
  double hypers[kMaxHypers] = {};
  int variant = 0;
  bool anew = false;  // states that begin with the learning rate do so in this step
  double coupled_decay = 0.0;
  bool maximize = false;
  bool cautious = false;
  bool average = false;
  double ema_decay = 0.0;
  bool ema_warmup = false;
  // How new states are stored; 8 bits stand for codes of either kind, of parameters that are not too small for them.
  Dtype state_dtype = Dtype::float32;
  std::int64_t least_8bit = 0;
  bool master = false;
  bool random_param = false;
  std::uint64_t seed = 0;
  WholeStep whole;
  py::ssize_t keys = 0;  // of the group, that were found
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
  double scalars[kMaxScalars] = {};   // before the step
  double advanced[kMaxScalars] = {};  // after it
};

// What a parameter was when an optimizer was given it.
struct Geometry {
  py::handle owner;  // compared, not held: the garbage collector cannot see what a native object holds
  Dtype dtype;
  py::object descr;
  std::vector<py::ssize_t> shape, strides;
  py::tuple lengths() const;
  std::string text() const;
};
Geometry geometry_of(py::handle owner, py::handle array, const Label& label);
// A sum of products as value · 2^exponent: where doubles are beyond 10^154, or below 10^-162, their squares are no
// numbers. The exponent is 0 where nothing of the kind has happened, and that of squares is even.
struct Ranged {
  double value = 0.0;
  int exponent = 0;
};
// The root, divided by a number.
double root_of(const Ranged& squares, double divisor = 1.0);
// The sum in the order of the parts.
Ranged total_of(const std::vector<Ranged>& parts);

// What a step did.
struct Outcome {
  bool skipped = false;
  bool measured = false;  // with telemetry: `sums` are there
  bool has_norm = false;  // grad_norm and nonfinite are known
  double grad_norm = 0.0;
  double nonfinite = 0.0;
  double clip_coefficient = 1.0;
  std::vector<double> sums;    // kStepSums an item
  std::vector<int> exponents;  // of these, or empty: all 0

  Ranged sum(std::size_t item, int which) const {
    const std::size_t at = item * kStepSums + std::size_t(which);
    return {sums[at], exponents.empty() ? 0 : exponents[at]};
  }
};

// How errors name an argument: params[2] and state[2]['exp_avg'], or param[2] and exp_avg[2].
enum class Naming { optimizer, function };

// What to do with an lr that is a function.
enum class Schedules { ask, skip, refuse };

// dict[key], null where it is missing.
py::handle get(py::handle dict, py::handle key);
// A Python bool or NumPy's; TypeError.
bool flag(py::handle value, const char* name);
// A Python number, no bool; TypeError. Infinite where a double cannot hold it.
double number(py::handle value, const char* name);
// The same where infinity is a value: a number that a double cannot hold is a ValueError.
double number_or_infinity(py::handle value, const char* name);

class Engine {
 public:
  Engine(const std::string& rule, Naming naming);

  // Reads a dict of hyper-parameters and options, and checks them. A schedule is asked for lr(taken), and, where that
  // matters and `last_lr` is not known, for the one before.
  Settings read(py::handle group, Schedules schedules, std::int64_t taken, double last_lr = NAN) const;
  // Checks all items, then computes. States that were null are there afterwards, unless the step was skipped.
  // `shared` are the rule's shared scalars, which move on. `settle` is called before the first array is written, when
  // all but telemetry of the native sets is known: nothing that may fail comes after it.
  using Settle = std::function<void(const Outcome&)>;
  const Outcome& run(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared, double grad_scale,
                     const Settle& settle);
  // What a parameter must be, alone and beside the others; and what it is.
  std::vector<Geometry> check_params(const std::vector<py::handle>& params);

  // Whether the last run got as far as the arrays, though it may have failed to report on it.
  bool written() const { return written_out_; }
  const runtime::Rule& rule() const { return rule_; }
  int states() const { return int(rule_.states.size()); }
  int scalars() const { return int(rule_.scalars.size()); }
  // The groups whose names errors use; borrowed.
  void name_after(py::handle groups) { groups_ = groups; }
  // Looks at the memory of the items, which may run code of other libraries: before any pointer is taken.
  void view(std::vector<Item>& items) const;
  void view_states(Item& item) const;
  int variant_for(const Settings& settings, py::handle param) const;
  bool keeps(const Item& item, int s) const { return rule_.keeps[std::size_t(item.variant)] >> s & 1; }
  const std::string& scales_name(int s) const { return scales_names_[std::size_t(s)]; }
  double lr_of(const Settings& settings) const { return settings.hypers[lr_]; }

 private:
  // What memory an array takes, and whose it is: the s-th state's of a parameter, the scalars' behind the states, the
  // scales of the s-th state from kScales on, or one of these.
  enum Owner { kParam = -1, kGrad = -2, kAverage = -3, kMaster = -4, kScales = 16 };
  struct Span {
    const char* data;
    std::int64_t bytes;
    std::int32_t index;
    std::int32_t owner;
  };

  Label label(py::ssize_t index, int owner) const;
  Label param_label(const Item& item) const { return label(item.index, kParam); }
  Label grad_label(const Item& item) const { return label(item.index, kGrad); }
  void read_field(const Field& field, py::handle given, double* out) const;
  void view_grad(Item& item, bool& foreign) const;
  void inspect_param(const Item& item, runtime::StepTensor& tensor);
  void require_grad_dtype(const Item& item, const Array& grad, const runtime::StepTensor& tensor) const;
  void inspect_grad(Item& item, runtime::StepTensor& tensor);
  void inspect_rows(const Item& item, const Settings& settings, runtime::StepTensor& tensor);
  Dtype dtype_of_state(const Settings& settings, const runtime::StepTensor& tensor, int s) const;
  Array inspect_state(const Item& item, py::handle array, int owner);
  Dtype inspect_stored_state(const Item& item, const Settings& settings, const runtime::StepTensor& tensor, int s,
                             StepArgs& args);
  void inspect_scales(const Item& item, const runtime::StepTensor& tensor, int s, float** out);
  char* inspect_whole(const Item& item, const runtime::StepTensor& tensor, py::handle array, int owner);
  void inspect_item(Item& item, const Settings& settings, double grad_scale);
  void refuse_overlaps();
  void make_state(Item& item, const Settings& settings, runtime::StepTensor& tensor, int s, int kept) const;
  void make_states(std::vector<Item>& items, const std::vector<Settings>& groups);
  void set_coefficients(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared);
  void measure(const std::vector<Item>& items, const std::vector<Settings>& groups, double* shared);
  void measure_gradient(const std::vector<Item>& items, double grad_scale);
  void total_gradient(double grad_scale);
  py::dict describe(const Item& item, const Settings& settings, const StepArgs& args) const;
  void measure_again(const std::vector<Item>& items, const std::vector<py::object>& before);
  int fused_way(const Item& item, const StepArgs& args) const;
  void prepare_native(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared);
  void write_native(bool telemetry);
  Writes compute_reference(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared);

  const runtime::Rule& rule_;
  const Naming naming_;
  py::handle groups_;
  std::vector<py::object> field_names_;
  std::vector<std::string> scales_names_;
  int lr_ = 0;
  // Reused from step to step.
  const KernelTable* table_ = nullptr;  // null: the reference
  std::vector<runtime::StepTensor> tensors_;
  runtime::Step step_;
  std::vector<double> sums_;
  std::vector<int> exponents_;  // of these, or empty: all 0
  Ranged squares_;              // of all gradients
  Outcome outcome_;
  bool written_out_ = false;
  std::vector<unsigned char> coefficients_;
  std::vector<Span> written_, read_, seen_, seen_read_, sorted_;
};

}  // namespace fusedstep::bind
