#include "bind/step/settings.h"

#include <cstring>

namespace fusedstep::bind {
namespace {

// The group's keys, as Python interns them.
struct Keys {
  py::handle maximize = PyUnicode_InternFromString("maximize");
  py::handle ema_decay = PyUnicode_InternFromString("ema_decay");
  py::handle ema_warmup = PyUnicode_InternFromString("ema_warmup");
  py::handle cautious = PyUnicode_InternFromString("cautious");
  py::handle state_dtype = PyUnicode_InternFromString("state_dtype");
  py::handle min_8bit_size = PyUnicode_InternFromString("min_8bit_size");
  py::handle master_weights = PyUnicode_InternFromString("master_weights");
  py::handle stochastic_rounding = PyUnicode_InternFromString("stochastic_rounding");
  py::handle seed = PyUnicode_InternFromString("seed");
  py::handle max_grad_norm = PyUnicode_InternFromString("max_grad_norm");
  py::handle skip_nonfinite = PyUnicode_InternFromString("skip_nonfinite");
  py::handle telemetry = PyUnicode_InternFromString("telemetry");
};

const Keys& keys() {
  static const Keys all;
  return all;
}

// An option of the group, null where it has none; counts what was found.
py::object option(Settings& settings, py::handle group, py::handle key) {
  const py::handle given = get(group, key);
  settings.keys += given ? 1 : 0;
  return py::reinterpret_borrow<py::object>(given);
}

Dtype state_dtype(py::handle given) {
  if (is_text(given, "float32")) return Dtype::float32;
  if (is_text(given, "bfloat16")) return Dtype::bfloat16;
  if (is_text(given, "8bit")) return Dtype::unsigned8;
  value_error({"state_dtype"}, "expected 'float32', 'bfloat16' or '8bit', got " + shown(given));
}

}  // namespace

void require_bits(const runtime::Rule& rule, const Settings& settings, int bits, const Label& label) {
  if (const char* reason = rule.refuse_bits(settings.hypers, bits)) {
    value_error(label, std::string(rule.name) + " cannot have states of " + std::to_string(bits) + " bits: " + reason);
  }
}

SettingsReader::SettingsReader(const runtime::Rule& rule) : rule_(rule) {
  int at = 0;
  for (const Field& field : rule.fields) {
    field_names_.push_back(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(field.name)));
    if (std::strcmp(field.name, "lr") == 0) lr_ = at;
    at += field.count;
  }
}

Settings SettingsReader::read(py::handle group, Schedules schedules, std::int64_t taken, double last_lr) const {
  Settings settings;
  read_hypers(settings, group, schedules, taken, last_lr);
  if (const char* reason = rule_.refuse(settings.hypers)) throw py::value_error(reason);
  settings.variant = rule_.variant(settings.hypers);
  settings.coupled_decay = rule_.coupled_decay(settings.hypers);
  read_update_options(settings, group);
  read_storage_options(settings, group);
  read_whole_step_options(settings, group);
  return settings;
}

void SettingsReader::read_hypers(Settings& settings, py::handle group, Schedules schedules, std::int64_t taken,
                                 double last_lr) const {
  double* out = settings.hypers;
  for (std::size_t k = 0; k < rule_.fields.size(); ++k) {
    const Field& field = rule_.fields[k];
    const auto given = py::reinterpret_borrow<py::object>(get(group, field_names_[k]));
    if (!given) value_error({field.name}, "missing");
    ++settings.keys;
    const bool is_lr = out == settings.hypers + lr_;
    if (field.count > 1) {
      read_tuple(field, given, out);
    } else if (is_lr && schedules != Schedules::refuse && PyCallable_Check(given.ptr()) != 0) {
      if (schedules == Schedules::ask) read_schedule(settings, field, given, taken, last_lr);
    } else {
      *out = field_value(field, given);
    }
    out += field.count;
  }
}

void SettingsReader::read_tuple(const Field& field, py::handle given, double* out) const {
  const std::string expected = "expected " + std::to_string(field.count) + " numbers, got ";
  if (!is_sequence(given)) type_error({field.name}, expected + kind_text(given));
  const auto values = py::reinterpret_borrow<py::sequence>(given);
  if (py::len(values) != std::size_t(field.count)) {
    value_error({field.name}, expected + std::to_string(py::len(values)));
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

void SettingsReader::read_update_options(Settings& settings, py::handle group) const {
  if (const py::object given = option(settings, group, keys().maximize)) settings.maximize = flag(given, "maximize");
  const py::object average = option(settings, group, keys().ema_decay);
  if (average && !average.is_none()) {
    settings.average = true;
    settings.ema_decay = number(average, "ema_decay");
    check_domain({"ema_decay", Domain::unit_interval}, settings.ema_decay, average);
  }
  if (const py::object given = option(settings, group, keys().ema_warmup)) {
    settings.ema_warmup = flag(given, "ema_warmup");
    if (settings.ema_warmup && !settings.average) {
      throw py::value_error("ema_warmup: expected False without ema_decay, which it is for");
    }
  }
  if (const py::object given = option(settings, group, keys().cautious)) {
    settings.cautious = flag(given, "cautious");
    if (settings.cautious && !rule_.cautious) {
      throw py::value_error("cautious: does not apply to " + std::string(rule_.name));
    }
  }
}

void SettingsReader::read_storage_options(Settings& settings, py::handle group) const {
  if (const py::object given = option(settings, group, keys().state_dtype)) settings.state_dtype = state_dtype(given);
  if (settings.state_dtype != Dtype::float32) {
    require_bits(rule_, settings, bits_of(settings.state_dtype), {"state_dtype"});
  }
  if (const py::object given = option(settings, group, keys().min_8bit_size)) {
    settings.least_8bit = count_of(given, "min_8bit_size");
  }
  if (const py::object given = option(settings, group, keys().master_weights)) {
    settings.master = flag(given, "master_weights");
  }
  if (const py::object given = option(settings, group, keys().stochastic_rounding)) {
    settings.random_param = flag(given, "stochastic_rounding");
  }
  if (const py::object given = option(settings, group, keys().seed)) {
    settings.seed = std::uint64_t(count_of(given, "seed"));
  }
  if (settings.master && settings.random_param) {
    throw py::value_error("stochastic_rounding: expected False with master_weights, which nothing is lost from");
  }
}

void SettingsReader::read_whole_step_options(Settings& settings, py::handle group) const {
  WholeStep& whole = settings.whole;
  const py::object norm = option(settings, group, keys().max_grad_norm);
  if (norm && !norm.is_none()) {
    whole.clip = true;
    whole.max_grad_norm = number_or_infinity(norm, "max_grad_norm");
    if (!(whole.max_grad_norm > 0.0)) {
      value_error({"max_grad_norm"}, "expected a number > 0, or None, got " + shown(norm));
    }
  }
  if (const py::object given = option(settings, group, keys().skip_nonfinite)) {
    whole.skip_nonfinite = flag(given, "skip_nonfinite");
  }
  if (const py::object given = option(settings, group, keys().telemetry)) {
    whole.telemetry = flag(given, "telemetry");
  }
}

}  // namespace fusedstep::bind
