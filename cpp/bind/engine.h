// A step of one rule over many tensors: everything is read and checked, then everything is computed.
#pragma once

#include <string>
#include <vector>

#include "bind/arrays.h"
#include "runtime/registry.h"
#include "runtime/step.h"

namespace fusedstep::bind {

// A group's hyper-parameters as this step found them.
struct Settings {
  double hypers[kMaxHypers] = {};
  int variant = 0;
  double coupled_decay = 0.0;
  bool maximize = false;
  bool average = false;
  double ema_decay = 0.0;
};

// One parameter that has a gradient this time. Null states are made, as zeros, when all checks have passed.
struct Item {
  int group = 0;
  py::ssize_t index = 0;
  py::object param, grad;  // held: other threads may drop theirs while the step runs
  py::object state[kMaxStates];
  py::object ema;
  std::int64_t step = 0;
  bool first = false;
};

// How errors name an argument: params[2] and state[2]['exp_avg'], or param[2] and exp_avg[2].
enum class Naming { optimizer, function };

// What to do with an lr that is a function.
enum class Schedules { ask, skip, refuse };

// dict[key], null where it is missing.
py::handle get(py::handle dict, py::handle key);
// A Python bool or NumPy's; TypeError.
bool flag(py::handle value, const char* name);
// A Python number, no bool; TypeError.
double number(py::handle value, const char* name);

class Engine {
 public:
  Engine(const std::string& rule, Naming naming);

  // Reads a dict of hyper-parameters and options, and checks them. A schedule is asked for lr(taken).
  Settings read(py::handle group, Schedules schedules, std::int64_t taken) const;
  // Checks all items, then computes. States that were null are there afterwards.
  void run(std::vector<Item>& items, const std::vector<Settings>& groups, double grad_scale);
  // What a parameter must be, alone and beside the others.
  void check_params(const std::vector<py::handle>& params);

  const runtime::Rule& rule() const { return rule_; }
  int states() const { return int(rule_.states.size()); }
  // Whether these hyper-parameters keep the s-th state.
  bool keeps(const Settings& settings, int s) const { return rule_.keeps[std::size_t(settings.variant)] >> s & 1; }
  double lr_of(const Settings& settings) const { return settings.hypers[lr_]; }

 private:
  struct Span {
    Array array;
    Label label;
  };

  Label param_label(const Item& item) const;
  Label grad_label(const Item& item) const;
  Label state_label(const Item& item, const char* name) const;
  void view_grads(std::vector<Item>& items) const;
  void inspect_param(const Item& item, runtime::StepTensor& tensor);
  void inspect_grad(Item& item, runtime::StepTensor& tensor);
  char* inspect_state(const Item& item, py::handle array, const char* name);
  void refuse_overlaps();
  void make_states(std::vector<Item>& items, const std::vector<Settings>& groups);
  void set_coefficients(const std::vector<Item>& items, const std::vector<Settings>& groups);
  void run_reference(const std::vector<Item>& items, const std::vector<Settings>& groups) const;

  const runtime::Rule& rule_;
  const Naming naming_;
  std::vector<py::object> field_names_;
  int lr_ = 0;
  // Reused from step to step.
  std::vector<runtime::StepTensor> tensors_;
  std::vector<unsigned char> coefficients_;
  std::vector<Span> written_, read_, seen_, sorted_;
};

}  // namespace fusedstep::bind
