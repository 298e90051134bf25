#include "bind/step/settings.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "bind/keys.h"

namespace fusedstep::bind {
namespace {

// A group's keys behind its hyper-parameters, in the order in which it has them: that of OPTIONS in
// optimizers/base/options.py.
enum Option {
  kMaximize,
  kEmaDecay,
  kEmaWarmup,
  kMaxGradNorm,
  kSkipNonfinite,
  kTelemetry,
  kCautious,
  kStateDtype,
  kMin8bitSize,
  kMasterWeights,
  kStochasticRounding,
  kSeed,
  kParams,
  kParamNames,
  kOptions
};
constexpr const char* kOptionNames[kOptions] = {
    "maximize", "ema_decay",   "ema_warmup",    "max_grad_norm",  "skip_nonfinite",      "telemetry",
    "cautious", "state_dtype", "min_8bit_size", "master_weights", "stochastic_rounding", "seed",
    "params",   "param_names"};

Dtype state_dtype(py::handle given) {
  if (is_text(given, "float32")) return Dtype::float32;
  if (is_text(given, "bfloat16")) return Dtype::bfloat16;
  if (is_text(given, "8bit")) return Dtype::unsigned8;
  value_error({"state_dtype"}, "expected 'float32', 'bfloat16' or '8bit', got " + shown(given));
}

// A step size that all parameters share follows from the hyper-parameters of all; these may differ nevertheless.
bool may_differ(const Field& field) {
  for (const char* name : {"lr", "eps", "weight_decay"}) {
    if (std::strcmp(field.name, name) == 0) return true;
  }
  return false;
}

const char* differing_hyper(const runtime::Rule& rule, const Settings& first, const Settings& other) {
  const char* differs = nullptr;
  int at = 0;
  for (const Field& field : rule.fields) {
    for (int k = 0; k < field.count; ++k, ++at) {
      const double x = first.hypers[at], y = other.hypers[at];
      const bool same = x == y || (x != x && y != y);
      if (!same && !may_differ(field)) differs = field.name;
    }
  }
  return differs;
}

}  // namespace

// A group's values, null where it has none; held, for reading one may run Python code that changes the group.
struct SettingsReader::Values {
  py::object hypers[kMaxHypers], options[kOptions];

  void find(py::handle group, const std::vector<py::object>& keys) {
    py::handle found[kMaxHypers + kOptions];
    find_all(group, keys, found);
    const std::size_t fields = keys.size() - kOptions;
    for (std::size_t k = 0; k < fields; ++k) hypers[k] = py::reinterpret_borrow<py::object>(found[k]);
    for (std::size_t k = 0; k < kOptions; ++k) options[k] = py::reinterpret_borrow<py::object>(found[fields + k]);
  }
  py::ssize_t count() const {
    const auto is_there = [](const py::object& value) { return bool(value); };
    return std::count_if(std::begin(hypers), std::end(hypers), is_there) +
           std::count_if(std::begin(options), std::end(options), is_there);
  }
};

void require_agreement(const runtime::Rule& rule, const Settings& first, const Settings& other) {
  const WholeStep &a = first.whole, &b = other.whole;
  const char* differs = rule.shared_scalars ? differing_hyper(rule, first, other) : nullptr;
  if (a.clip != b.clip || (a.clip && a.max_grad_norm != b.max_grad_norm)) differs = "max_grad_norm";
  if (a.skip_nonfinite != b.skip_nonfinite) differs = "skip_nonfinite";
  if (a.telemetry != b.telemetry) differs = "telemetry";
  if (differs != nullptr) value_error({differs}, "holds for the whole step: expected the same in all groups");
}

void require_bits(const runtime::Rule& rule, const Settings& settings, int bits, const Label& label) {
  if (const char* reason = rule.refuse_bits(settings.hypers, bits)) {
    value_error(label, std::string(rule.name) + " cannot have states of " + std::to_string(bits) + " bits: " + reason);
  }
}

SettingsReader::SettingsReader(const runtime::Rule& rule) : rule_(rule) {
  int at = 0;
  for (const Field& field : rule.fields) {
    keys_.push_back(intern(field.name));
    if (std::strcmp(field.name, "lr") == 0) lr_ = at;
    at += field.count;
  }
  for (const char* name : kOptionNames) keys_.push_back(intern(name));
}

Settings SettingsReader::read(py::handle group, Schedules schedules, std::int64_t taken, double last_lr) const {
  Settings settings;
  Values values;
  values.find(group, keys_);
  read_hypers(settings, values, group, schedules, taken, last_lr);
  if (const char* reason = rule_.refuse(settings.hypers)) throw py::value_error(reason);
  settings.variant = rule_.variant(settings.hypers);
  settings.coupled_decay = rule_.coupled_decay(settings.hypers);
  settings.keys = values.count();
  read_update_options(settings, values);
  read_storage_options(settings, values);
  read_whole_step_options(settings, values);
  settings.params = std::move(values.options[kParams]);
  settings.param_names = std::move(values.options[kParamNames]);
  return settings;
}

void SettingsReader::read_hypers(Settings& settings, Values& values, py::handle group, Schedules schedules,
                                 std::int64_t taken, double last_lr) const {
  double* out = settings.hypers;
  for (std::size_t k = 0; k < rule_.fields.size(); ++k) {
    const Field& field = rule_.fields[k];
    const py::object given = values.hypers[k];
    if (!given) value_error({field.name}, "missing");
    const bool is_lr = out == settings.hypers + lr_;
    if (field.count > 1) {
      read_tuple(field, given, out);
    } else if (is_lr && schedules != Schedules::refuse && PyCallable_Check(given.ptr()) != 0) {
      if (schedules == Schedules::ask) {
        read_schedule(settings, field, given, taken, last_lr);
        // It may have changed the group.
        values.find(group, keys_);
      }
    } else {
      *out = field_value(field, given);
    }
    out += field.count;
  }
}

void SettingsReader::read_tuple(const Field& field, py::handle given, double* out) const {
  const auto expected = [&](const std::string& got) {
    return "expected " + std::to_string(field.count) + " numbers, got " + got;
  };
  if (!is_sequence(given)) type_error({field.name}, expected(kind_text(given)));
  const auto values = py::reinterpret_borrow<py::sequence>(given);
  if (py::len(values) != std::size_t(field.count)) {
    value_error({field.name}, expected(std::to_string(py::len(values))));
  }
  for (int i = 0; i < field.count; ++i, ++out) {
    const py::object value = values[i];
    if (field.optional && value.is_none()) {
      *out = NAN;
    } else {
      *out = number(value, field.name);
      check_domain(field, *out, given);
    }
  }
}

void SettingsReader::read_schedule(Settings& settings, const Field& field, const py::object& schedule,
                                   std::int64_t taken, double last_lr) const {
  double& lr = settings.hypers[lr_];
  lr = field_value(field, py::object(schedule(taken)));
  if (!rule_.begins_with_lr || taken == 0) return;
  if (std::isnan(last_lr)) last_lr = number(py::object(schedule(taken - 1)), field.name);
  settings.anew = lr > last_lr;
}

void SettingsReader::read_update_options(Settings& settings, const Values& values) const {
  if (const py::object& given = values.options[kMaximize]) settings.maximize = flag(given, "maximize");
  const py::object& average = values.options[kEmaDecay];
  if (average && !average.is_none()) {
    settings.average = true;
    settings.ema_decay = number(average, "ema_decay");
    check_domain({"ema_decay", Domain::unit_interval}, settings.ema_decay, average);
  }
  if (const py::object& given = values.options[kEmaWarmup]) {
    settings.ema_warmup = flag(given, "ema_warmup");
    if (settings.ema_warmup && !settings.average) {
      throw py::value_error("ema_warmup: expected False without ema_decay, which it is for");
    }
  }
  if (const py::object& given = values.options[kCautious]) {
    settings.cautious = flag(given, "cautious");
    if (settings.cautious && !rule_.cautious) {
      throw py::value_error("cautious: does not apply to " + std::string(rule_.name));
    }
  }
}

void SettingsReader::read_storage_options(Settings& settings, const Values& values) const {
  if (const py::object& given = values.options[kStateDtype]) settings.state_dtype = state_dtype(given);
  if (settings.state_dtype != Dtype::float32) {
    require_bits(rule_, settings, bits_of(settings.state_dtype), {"state_dtype"});
  }
  if (const py::object& given = values.options[kMin8bitSize]) {
    settings.least_8bit = count_of(given, "min_8bit_size");
  }
  if (const py::object& given = values.options[kMasterWeights]) {
    settings.master = flag(given, "master_weights");
  }
  if (const py::object& given = values.options[kStochasticRounding]) {
    settings.random_param = flag(given, "stochastic_rounding");
  }
  if (const py::object& given = values.options[kSeed]) {
    settings.seed = std::uint64_t(count_of(given, "seed"));
  }
  if (settings.master && settings.random_param) {
    throw py::value_error("stochastic_rounding: expected False with master_weights, which nothing is lost from");
  }
}

void SettingsReader::read_whole_step_options(Settings& settings, const Values& values) const {
  WholeStep& whole = settings.whole;
  const py::object& norm = values.options[kMaxGradNorm];
  if (norm && !norm.is_none()) {
    whole.clip = true;
    whole.max_grad_norm = number_or_infinity(norm, "max_grad_norm");
    if (!(whole.max_grad_norm > 0.0)) {
      value_error({"max_grad_norm"}, "expected a number > 0, or None, got " + shown(norm));
    }
  }
  if (const py::object& given = values.options[kSkipNonfinite]) {
    whole.skip_nonfinite = flag(given, "skip_nonfinite");
  }
  if (const py::object& given = values.options[kTelemetry]) {
    whole.telemetry = flag(given, "telemetry");
  }
}

}  // namespace fusedstep::bind
