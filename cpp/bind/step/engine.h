// A step of one rule over many tensors: everything is read and checked, then everything is computed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bind/step/geometry.h"
#include "bind/step/inspect.h"
#include "bind/step/item.h"
#include "bind/step/settings.h"
#include "bind/step/work.h"

namespace fusedstep::bind {

class StepBackend;

// What a step did.
struct Outcome {
  bool skipped = false;
  bool measured = false;  // with telemetry: it is there
  bool has_norm = false;  // grad_norm and nonfinite are known
  double grad_norm = 0.0;
  double nonfinite = 0.0;
  double clip_coefficient = 1.0;
  runtime::StepTelemetry telemetry;
};

struct GradientSquares {
  runtime::Ranged squares;
  double nonfinite = 0.0;  // elements that are infinite or NaN
};

class Engine {
 public:
  Engine(const std::string& rule, Naming naming);

  // Reads a dict of hyper-parameters and options, and checks them. A schedule is asked for lr(taken), and, where that
  // matters and `last_lr` is not known, for the one before.
  Settings read(py::handle group, Schedules schedules, std::int64_t taken, double last_lr = NAN) const {
    return reader_.read(group, schedules, taken, last_lr);
  }
  // Checks all items, then computes. States that were null are there afterwards, unless the step was skipped.
  // `shared` are the rule's shared scalars, which move on. `settle` is called before the first array is written, when
  // all but telemetry of the native sets is known: nothing that may fail comes after it.
  using Settle = std::function<void(const Outcome&)>;
  // `peers`: null, or who have the other parts of the items' tensors; `known`: null, or the squares of all gradients.
  const Outcome& run(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared, double grad_scale,
                     const Settle& settle, const Peers* peers = nullptr, const GradientSquares* known = nullptr);
  // All checks of a run, which writes nothing.
  void check(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared, double grad_scale);
  // Forgets what the last checks saw.
  void forget() { inspector_.begin(); }
  // ValueError where what the last checks saw overlaps what those of another engine saw.
  void refuse_overlaps(const Engine& other) { inspector_.refuse_overlaps(other.inspector_); }
  // Of each item's gradient.
  std::vector<GradientSquares> measure(std::vector<Item>& items, const std::vector<Settings>& groups);
  // What a parameter must be, alone and beside the others; and what it is.
  std::vector<Geometry> check_params(const std::vector<py::handle>& params);

  // Whether the last run got as far as the arrays, though it may have failed to report on it.
  bool written() const { return written_; }
  const runtime::Rule& rule() const { return rule_; }
  int states() const { return int(rule_.states.size()); }
  int scalars() const { return int(rule_.scalars.size()); }
  // The groups whose names errors use; borrowed.
  void name_after(py::handle groups) { labels_.name_after(groups); }
  Label param_label(const Item& item) const { return labels_.param(item); }
  // Looks at the memory of the items, which may run code of other libraries: before any pointer is taken.
  void view(std::vector<Item>& items) const;
  void view_states(Item& item) const;
  int variant_for(const Settings& settings, py::handle param) const;
  bool keeps(const Item& item, int s) const { return bind::keeps(rule_, item, s); }
  const std::string& scales_name(int s) const { return labels_.scales(s); }
  double lr_of(const Settings& settings) const { return reader_.lr_of(settings); }

 private:
  void view_grad(Item& item, bool& foreign) const;
  void begin(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared, double grad_scale,
             const Peers* peers);
  static void require_scale(double grad_scale);
  bool clip(const StepBackend& backend, const GradientSquares* known);
  void measure_telemetry(const StepBackend& backend);

  const runtime::Rule& rule_;
  SettingsReader reader_;
  Labels labels_;
  Inspector inspector_;
  StepWork work_;
  Outcome outcome_;
  bool written_ = false;
};

}  // namespace fusedstep::bind
