#include "bind/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/isa.h"

namespace fusedstep::bind {
namespace {

bool is_numpy_bool(py::handle value) {
  static const py::handle numpy_bool = py::object(py::module_::import("numpy").attr("bool_")).release();
  return Py_TYPE(value.ptr()) == reinterpret_cast<PyTypeObject*>(numpy_bool.ptr());
}

void check_domain(const Field& field, double value, py::handle given) {
  const char* expected = nullptr;
  switch (field.domain) {
    case Domain::non_negative:
      if (!(value >= 0.0 && std::isfinite(value))) expected = "a finite number >= 0";
      break;
    case Domain::unit_interval:
      if (!(value >= 0.0 && value < 1.0)) expected = field.count > 1 ? "numbers in [0, 1)" : "a number in [0, 1)";
      break;
    case Domain::finite:
      if (!std::isfinite(value)) expected = "a finite number";
      break;
    case Domain::flag:
      break;
  }
  if (expected != nullptr) {
    value_error({field.name}, std::string("expected ") + expected + ", got " + std::string(py::repr(given)));
  }
}

}  // namespace

py::handle get(py::handle dict, py::handle key) {
  const py::handle value = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (!value && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return value;
}

bool flag(py::handle value, const char* name) {
  if (value.ptr() == Py_True) return true;
  if (value.ptr() == Py_False) return false;
  if (is_numpy_bool(value)) return PyObject_IsTrue(value.ptr()) == 1;
  type_error({name}, "expected True or False, got " + std::string(py::repr(value)));
}

double number(py::handle value, const char* name) {
  if (PyFloat_CheckExact(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
  if (PyBool_Check(value.ptr()) || is_numpy_bool(value))
    type_error({name}, "expected a number, got " + kind_text(value));
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1.0 && PyErr_Occurred() != nullptr) {
    if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
      PyErr_Clear();
      return HUGE_VAL;
    }
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
    PyErr_Clear();
    type_error({name}, "expected a number, got " + kind_text(value));
  }
  return number;
}

Engine::Engine(const std::string& name, Naming naming)
    : rule_([&]() -> const runtime::Rule& {
        if (const runtime::Rule* rule = runtime::find_rule(name)) return *rule;
        throw py::value_error("rule: '" + name + "' is not a rule");
      }()),
      naming_(naming) {
  for (const Field& field : rule_.fields) {
    field_names_.push_back(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(field.name)));
  }
  int at = 0;
  for (const Field& field : rule_.fields) {
    if (std::strcmp(field.name, "lr") == 0) lr_ = at;
    at += field.count;
  }
}

Settings Engine::read(py::handle group, Schedules schedules, std::int64_t taken) const {
  static const py::handle maximize_key = PyUnicode_InternFromString("maximize");
  static const py::handle ema_key = PyUnicode_InternFromString("ema_decay");
  Settings settings;
  double* out = settings.hypers;
  for (std::size_t k = 0; k < rule_.fields.size(); ++k) {
    const Field& field = rule_.fields[k];
    const auto given = py::reinterpret_borrow<py::object>(get(group, field_names_[k]));
    if (!given) value_error({field.name}, "missing");
    if (field.count > 1) {
      if (!py::isinstance<py::tuple>(given) && !py::isinstance<py::list>(given)) {
        type_error({field.name}, "expected " + std::to_string(field.count) + " numbers, got " + kind_text(given));
      }
      const auto values = py::reinterpret_borrow<py::sequence>(given);
      if (py::len(values) != std::size_t(field.count)) {
        value_error({field.name},
                    "expected " + std::to_string(field.count) + " numbers, got " + std::to_string(py::len(values)));
      }
      for (int i = 0; i < field.count; ++i) {
        *out = number(py::object(values[i]), field.name);
        check_domain(field, *out++, given);
      }
    } else if (field.domain == Domain::flag) {
      *out++ = flag(given, field.name) ? 1.0 : 0.0;
    } else if (out == settings.hypers + lr_ && schedules != Schedules::refuse && PyCallable_Check(given.ptr()) != 0) {
      if (schedules == Schedules::skip) {
        *out++ = 0.0;
        continue;
      }
      const py::object scheduled = given(taken);
      *out = number(scheduled, field.name);
      check_domain(field, *out++, scheduled);
    } else {
      *out = number(given, field.name);
      check_domain(field, *out++, given);
    }
  }
  if (const char* reason = rule_.refuse(settings.hypers)) throw py::value_error(reason);
  settings.variant = rule_.variant(settings.hypers);
  settings.coupled_decay = rule_.coupled_decay(settings.hypers);
  if (const py::handle given = get(group, maximize_key)) settings.maximize = flag(given, "maximize");
  const auto given = py::reinterpret_borrow<py::object>(get(group, ema_key));
  if (given && !given.is_none()) {
    settings.average = true;
    settings.ema_decay = number(given, "ema_decay");
    check_domain({"ema_decay", Domain::unit_interval, 1}, settings.ema_decay, given);
  }
  return settings;
}

Label Engine::param_label(const Item& item) const {
  return {naming_ == Naming::function ? "param" : "params", item.index};
}
Label Engine::grad_label(const Item& item) const {
  return {naming_ == Naming::function ? "grad" : "grads", item.index};
}
Label Engine::state_label(const Item& item, const char* name) const {
  if (naming_ == Naming::function) return {name, item.index};
  return {"state", item.index, name};
}

// Runs other libraries' code, which may do anything: before any pointer is taken.
void Engine::view_grads(std::vector<Item>& items) const {
  static const py::handle arrays = py::module_::import("fusedstep._arrays").release();
  for (Item& item : items) {
    if (!is_array(item.grad)) item.grad = arrays.attr("as_array")(item.grad, grad_label(item).text());
  }
}

void Engine::inspect_param(const Item& item, runtime::StepTensor& tensor) {
  const Label label = param_label(item);
  const Array param = inspect(item.param, label);
  require_dense(item.param, label);
  require_writable(item.param, label);
  written_.push_back({param, label});
  tensor.args.param = param.data;
  tensor.size = param.size;
  tensor.dtype = param.dtype;
}

void Engine::inspect_grad(Item& item, runtime::StepTensor& tensor) {
  const Label label = grad_label(item);
  Array grad = inspect(item.grad, label);
  require_same_dtype(item.grad, label, item.param, param_label(item));
  require_same_shape(item.grad, label, item.param, param_label(item));
  if (!same_layout(item.grad, item.param)) {
    py::object copy = array_like(item.param, "empty_like");
    copy[py::ellipsis()] = item.grad;
    grad = inspect(copy, label);
    item.grad = std::move(copy);
  }
  read_.push_back({grad, label});
  tensor.args.grad = grad.data;
}

char* Engine::inspect_state(const Item& item, py::handle object, const char* name) {
  const Label label = state_label(item, name);
  const Array array = inspect(object, label);
  require_same_dtype(object, label, item.param, param_label(item));
  require_same_shape(object, label, item.param, param_label(item));
  if (!same_layout(object, item.param)) value_error(label, "expected the memory layout of " + param_label(item).text());
  require_writable(object, label);
  written_.push_back({array, label});
  return array.data;
}

// The arrays that are written must overlap neither each other nor a gradient. They are sorted once, for as long as they
// stay where they are.
void Engine::refuse_overlaps() {
  const auto refuse = [](const Span& a, const Span& b) {
    value_error(a.label, "overlaps " + b.label.text() + " in memory");
  };
  const auto same = [](const Span& a, const Span& b) {
    return a.array.data == b.array.data && a.array.bytes == b.array.bytes;
  };
  if (!std::equal(seen_.begin(), seen_.end(), written_.begin(), written_.end(), same)) {
    seen_.clear();
    sorted_.clear();
    for (const Span& span : written_) {
      if (span.array.bytes > 0) sorted_.push_back(span);
    }
    std::stable_sort(sorted_.begin(), sorted_.end(),
                     [](const Span& a, const Span& b) { return a.array.data < b.array.data; });
    for (std::size_t k = 1; k < sorted_.size(); ++k) {
      if (overlap(sorted_[k - 1].array, sorted_[k].array)) refuse(sorted_[k], sorted_[k - 1]);
    }
    seen_ = written_;
  }
  for (const Span& grad : read_) {
    const auto after = std::lower_bound(sorted_.begin(), sorted_.end(), grad.array.data + grad.array.bytes,
                                        [](const Span& span, const char* end) { return span.array.data < end; });
    if (after != sorted_.begin() && overlap((after - 1)->array, grad.array)) refuse(grad, *(after - 1));
  }
}

void Engine::check_params(const std::vector<py::handle>& params) {
  written_.clear();
  read_.clear();
  for (std::size_t k = 0; k < params.size(); ++k) {
    runtime::StepTensor unused;
    Item item;
    item.index = py::ssize_t(k);
    item.param = py::reinterpret_borrow<py::object>(params[k]);
    inspect_param(item, unused);
  }
  refuse_overlaps();
}

void Engine::make_states(std::vector<Item>& items, const std::vector<Settings>& groups) {
  for (std::size_t k = 0; k < items.size(); ++k) {
    Item& item = items[k];
    StepArgs& args = tensors_[k].args;
    const Settings& settings = groups[std::size_t(item.group)];
    for (int s = 0; s < states(); ++s) {
      if (item.state[s] || !keeps(settings, s)) continue;
      item.state[s] = array_like(item.param, "zeros_like");
      args.state[s] = py::detail::array_proxy(item.state[s].ptr())->data;
    }
    if (settings.average && !item.ema) {
      item.ema = array_like(item.param, "empty_like");
      item.ema[py::ellipsis()] = item.param;
      args.ema = py::detail::array_proxy(item.ema.ptr())->data;
    }
  }
}

void Engine::set_coefficients(const std::vector<Item>& items, const std::vector<Settings>& groups) {
  if (coefficients_.size() < items.size() * kMaxCoefficientBytes) {
    coefficients_.resize(items.size() * kMaxCoefficientBytes);
  }
  for (std::size_t k = 0; k < items.size(); ++k) {
    const Item& item = items[k];
    runtime::StepTensor& tensor = tensors_[k];
    if (k > 0) {
      const Item& last = items[k - 1];
      if (item.group == last.group && item.step == last.step && item.first == last.first &&
          tensor.dtype == tensors_[k - 1].dtype) {
        tensor.args.coefficients = tensors_[k - 1].args.coefficients;
        continue;
      }
    }
    unsigned char* out = coefficients_.data() + k * kMaxCoefficientBytes;
    rule_.coefficients(groups[std::size_t(item.group)].hypers, {item.step, item.first}, tensor.dtype, out);
    tensor.args.coefficients = out;
  }
}

void Engine::run(std::vector<Item>& items, const std::vector<Settings>& groups, double grad_scale) {
  // Its reciprocal must be a number in float32 too.
  if (!(std::isfinite(grad_scale) && grad_scale > 0.0 && std::isfinite(float(1.0 / grad_scale)))) {
    value_error({"grad_scale"}, "expected a finite number > 0, got " + std::string(py::str(py::float_(grad_scale))));
  }
  const KernelTable* table = runtime::active_table();
  view_grads(items);
  written_.clear();
  read_.clear();
  tensors_.resize(items.size());
  for (std::size_t k = 0; k < items.size(); ++k) {
    Item& item = items[k];
    const Settings& settings = groups[std::size_t(item.group)];
    const int kept = __builtin_popcount(rule_.keeps[std::size_t(settings.variant)]);
    runtime::StepTensor& tensor = tensors_[k];
    inspect_param(item, tensor);
    inspect_grad(item, tensor);
    for (int s = 0; s < states(); ++s) {
      if (item.state[s]) tensor.args.state[s] = inspect_state(item, item.state[s], rule_.states[std::size_t(s)]);
    }
    tensor.args.ema = settings.average && item.ema ? inspect_state(item, item.ema, "ema") : nullptr;
    tensor.args.grad_factor = (settings.maximize ? -1.0 : 1.0) / grad_scale;
    tensor.args.decay = settings.coupled_decay;
    tensor.args.ema_decay = settings.ema_decay;
    tensor.bytes_per_element = (tensor.dtype == Dtype::float32 ? 4 : 8) * (3 + 2 * kept + 2 * settings.average);
    if (table != nullptr) tensor.kernel = table->step[rule_.index][int(tensor.dtype)][settings.variant];
  }
  refuse_overlaps();
  make_states(items, groups);
  if (table == nullptr) return run_reference(items, groups);
  set_coefficients(items, groups);
  const py::gil_scoped_release released;
  runtime::run_step(tensors_);
}

void Engine::run_reference(const std::vector<Item>& items, const std::vector<Settings>& groups) const {
  py::list tensors;
  for (std::size_t k = 0; k < items.size(); ++k) {
    const Item& item = items[k];
    const Settings& settings = groups[std::size_t(item.group)];
    py::dict hypers;
    const double* value = settings.hypers;
    for (const Field& field : rule_.fields) {
      if (field.count > 1) {
        py::tuple values{std::size_t(field.count)};
        for (int i = 0; i < field.count; ++i) values[std::size_t(i)] = *value++;
        hypers[field.name] = values;
      } else if (field.domain == Domain::flag) {
        hypers[field.name] = *value++ != 0.0;
      } else {
        hypers[field.name] = *value++;
      }
    }
    py::dict kept;
    for (int s = 0; s < states(); ++s) {
      if (keeps(settings, s)) kept[rule_.states[std::size_t(s)]] = item.state[s];
    }
    const StepArgs& args = tensors_[k].args;
    tensors.append(py::make_tuple(item.param, item.grad, kept, settings.average ? item.ema : py::object(py::none()),
                                  hypers, item.step, item.first, args.grad_factor, args.decay, args.ema_decay));
  }
  py::module_::import("fusedstep.reference.step").attr("run")(rule_.name, tensors);
}

}  // namespace fusedstep::bind
