#include "bind/step/engine.h"

#include <cmath>

#include "bind/backend.h"
#include "bind/memory.h"
#include "bind/step/states.h"

namespace fusedstep::bind {

Engine::Engine(const std::string& name, Naming naming)
    : rule_([&]() -> const runtime::Rule& {
        if (const runtime::Rule* rule = runtime::find_rule(name)) return *rule;
        throw py::value_error("rule: '" + name + "' is not a rule");
      }()),
      reader_(rule_),
      labels_(rule_, naming),
      inspector_(rule_, labels_) {}

int Engine::variant_for(const Settings& settings, py::handle param) const {
  const int variant = is_array(param) ? rule_.variant_of(settings.hypers, axes_of(param)) : -1;
  return variant < 0 ? settings.variant : variant;
}

void Engine::view_grad(Item& item, bool& foreign) const {
  static const py::handle row_sparse = py::object(py::module_::import("fusedstep.sparse").attr("RowSparse")).release();
  if (is_array(item.grad)) {
    if (!rule_.dense) {
      type_error(labels_.grad(item), "expected a fusedstep.RowSparse gradient, got " + kind_text(item.grad));
    }
  } else if (py::isinstance(item.grad, row_sparse)) {
    if (!rule_.sparse) type_error(labels_.grad(item), std::string(rule_.name) + " takes no row-sparse gradient");
    const std::string got = py::str(item.grad.attr("shape"));
    if (is_array(item.param) && got != shape_text(item.param)) {
      value_error(labels_.grad(item), "expected shape " + shape_text(item.param) + " as " + labels_.param(item).text() +
                                          " has, got " + got);
    }
    const py::tuple parts = item.grad.attr("coalesced")(labels_.grad(item).text());
    item.rows = parts[0];
    item.grad = parts[1];
    foreign = true;
  } else {
    item.grad = bind::view(item.grad, labels_.grad(item), &foreign);
  }
}

void Engine::view(std::vector<Item>& items) const {
  bool foreign = false;
  for (Item& item : items) {
    item.param = bind::view(item.owner, labels_.param(item), &foreign);
    view_grad(item, foreign);
    // What a table gave a moment ago needs no second look.
    if (is_array(item.owner)) require_alive(item.param, labels_.param(item));
    require_alive(item.grad, labels_.grad(item));
  }
  if (!foreign) return;
  for (const Item& item : items) {
    require_alive(item.param, labels_.param(item));
    require_alive(item.grad, labels_.grad(item));
  }
}

void Engine::view_states(Item& item) const {
  const auto look = [&](py::object& array, int role) {
    if (!array || array.is_none()) return;
    if (!is_array(array)) array = bind::view(array, labels_.of(item.index, role));
    require_alive(array, labels_.of(item.index, role));
  };
  for (int s = 0; s < states(); ++s) {
    look(item.state[s], s);
    look(item.scales[s], kScales + s);
  }
  look(item.ema, kAverage);
  look(item.master, kMaster);
}

std::vector<Geometry> Engine::check_params(const std::vector<py::handle>& params) {
  std::vector<Item> items(params.size());
  for (std::size_t k = 0; k < params.size(); ++k) {
    items[k].index = py::ssize_t(k);
    items[k].owner = py::reinterpret_borrow<py::object>(params[k]);
    items[k].param = bind::view(items[k].owner, labels_.param(items[k]));
  }
  inspector_.begin();
  std::vector<Geometry> known;
  for (const Item& item : items) {
    runtime::StepTensor unused = {};
    if (is_array(item.param)) require_alive(item.param, labels_.param(item));
    inspector_.inspect_param(item, unused);
    known.push_back(geometry_of(item.owner, item.param, labels_.param(item)));
  }
  inspector_.refuse_overlaps();
  return known;
}

// Whether the step goes on: gradients that are not finite may end it.
bool Engine::clip(const StepBackend& backend, const GradientSquares* known) {
  const WholeStep& whole = (*work_.groups)[0].whole;
  if (!whole.clip && !whole.skip_nonfinite) return true;
  runtime::GradientNorm gradient;
  if (known != nullptr) {
    gradient = runtime::gradient_norm({known->squares}, {known->nonfinite}, work_.grad_scale);
  } else {
    backend.measure_gradients(rule_, work_);
    work_.add_up(kNonFinite + 1);
    gradient = backend.gradient_norm(work_);
  }
  outcome_.has_norm = true;
  outcome_.grad_norm = gradient.norm;
  outcome_.nonfinite = gradient.nonfinite;
  if (whole.skip_nonfinite && gradient.nonfinite > 0.0) {
    outcome_.skipped = true;
    return false;
  }
  if (whole.clip && std::isfinite(whole.max_grad_norm)) {
    outcome_.clip_coefficient = backend.clip_coefficient(whole.max_grad_norm, gradient, work_.grad_scale);
    work_.clip_coefficient = outcome_.clip_coefficient;
  }
  return true;
}

void Engine::measure_telemetry(const StepBackend& backend) {
  work_.add_up(kStepSums);
  std::vector<runtime::TensorSums> tensors(work_.tensors.size());
  for (std::size_t k = 0; k < tensors.size(); ++k) {
    const Item& item = (*work_.items)[k];
    for (int s = 0; s < kStepSums; ++s) tensors[k].sums[s] = work_.sum(k, s);
    tensors[k].moment_sign = rule_.moment_sign * (work_.settings(item).maximize ? -1.0 : 1.0);
    tensors[k].averages = keeps_moment(rule_, item);
  }
  outcome_.measured = true;
  outcome_.telemetry = backend.telemetry(tensors, work_.grad_scale);
  if (outcome_.has_norm) return;
  const runtime::GradientNorm gradient = backend.gradient_norm(work_);
  outcome_.has_norm = true;
  outcome_.grad_norm = gradient.norm;
  outcome_.nonfinite = gradient.nonfinite;
}

// Checks the items; what the work holds then is the caller's to end.
void Engine::begin(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared, double grad_scale,
                   const Peers* peers) {
  work_.begin(items, groups, shared, grad_scale, peers);
  inspector_.begin();
  for (std::size_t k = 0; k < items.size(); ++k) {
    inspector_.inspect(items[k], work_.settings(items[k]), work_.tensors[k]);
    work_.tensors[k].squares = items[k].part.squares;
  }
  inspector_.refuse_overlaps();
  outcome_ = {};
  work_.step.cut(work_.tensors);
}

std::vector<GradientSquares> Engine::measure(std::vector<Item>& items, const std::vector<Settings>& groups) {
  struct End {
    StepWork& work;
    ~End() { work.end(); }
  } const end{work_};
  begin(items, groups, nullptr, 1.0, nullptr);
  (rule_.native ? *active_backends().step : *numpy_backends().step).measure_gradients(rule_, work_);
  std::vector<GradientSquares> all;
  for (std::size_t k = 0; k < items.size(); ++k) {
    all.push_back({work_.sum(k, kGradSquares), work_.sum(k, kNonFinite).value});
  }
  return all;
}

// Its reciprocal must be a number in float32 too.
void Engine::require_scale(double grad_scale) {
  if (!(std::isfinite(grad_scale) && grad_scale > 0.0 && std::isfinite(float(1.0 / grad_scale)) &&
        float(1.0 / grad_scale) > 0.0f)) {
    value_error({"grad_scale"}, "expected a finite number > 0, got " + std::string(py::str(py::float_(grad_scale))));
  }
}

void Engine::check(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared, double grad_scale) {
  require_scale(grad_scale);
  struct End {
    StepWork& work;
    ~End() { work.end(); }
  } const end{work_};
  begin(items, groups, shared, grad_scale, nullptr);
}

const Outcome& Engine::run(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared,
                           double grad_scale, const Settle& settle, const Peers* peers, const GradientSquares* known) {
  written_ = false;
  require_scale(grad_scale);
  const StepBackend& backend = rule_.native ? *active_backends().step : *numpy_backends().step;
  struct End {
    StepWork& work;
    ~End() { work.end(); }
  } const end{work_};
  begin(items, groups, shared, grad_scale, peers);
  if (!clip(backend, known)) return outcome_;
  make_states(rule_, work_);
  backend.prepare(rule_, work_);
  if (work_.measured) measure_telemetry(backend);
  settle(outcome_);
  backend.write(work_);
  written_ = true;
  if (work_.telemetry() && !work_.measured) {
    backend.measure(rule_, work_);
    measure_telemetry(backend);
  }
  return outcome_;
}

}  // namespace fusedstep::bind
