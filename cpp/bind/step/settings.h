// A group's hyper-parameters and options, read from its dict and checked.
#pragma once

#include <cmath>
#include <vector>

#include "bind/arguments.h"
#include "kernels/abi/table.h"
#include "runtime/registry.h"

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
  // How new states are stored. unsigned8 stands for codes of either sign, where the parameter has least_8bit elements.
  Dtype state_dtype = Dtype::float32;
  std::int64_t least_8bit = 0;
  bool master = false;
  bool random_param = false;
  std::uint64_t seed = 0;
  WholeStep whole;
  py::object params, param_names;  // as the group has them, unchecked; null where it has none
  py::ssize_t keys = 0;            // how many keys of the group were read
};

// What to do with an lr that is a function.
enum class Schedules { ask, skip, refuse };

// Reads the groups of one rule.
class SettingsReader {
 public:
  explicit SettingsReader(const runtime::Rule& rule);

  // A schedule is asked for lr(taken), and, where that matters and `last_lr` is not known, for the one before.
  // TypeError, ValueError.
  Settings read(py::handle group, Schedules schedules, std::int64_t taken, double last_lr) const;
  double lr_of(const Settings& settings) const { return settings.hypers[lr_]; }

 private:
  struct Values;

  void read_hypers(Settings& settings, Values& values, py::handle group, Schedules schedules, std::int64_t taken,
                   double last_lr) const;
  void read_tuple(const Field& field, py::handle given, double* out) const;
  void read_schedule(Settings& settings, const Field& field, const py::object& schedule, std::int64_t taken,
                     double last_lr) const;
  void read_update_options(Settings& settings, const Values& values) const;
  void read_storage_options(Settings& settings, const Values& values) const;
  void read_whole_step_options(Settings& settings, const Values& values) const;

  const runtime::Rule& rule_;
  std::vector<py::object> keys_;  // of a group: the hyper-parameters, the options, params and param_names
  int lr_ = 0;                    // its place among the hyper-parameters
};

// ValueError where groups differ in what holds for all of them together.
void require_agreement(const runtime::Rule& rule, const Settings& first, const Settings& other);
// ValueError, named `label`, where the rule cannot have states of so many bits.
void require_bits(const runtime::Rule& rule, const Settings& settings, int bits, const Label& label);
inline int bits_of(Dtype stored) { return 8 * int(item_bytes(stored)); }

}  // namespace fusedstep::bind
