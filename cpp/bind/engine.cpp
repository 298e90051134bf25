#include "bind/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bind/memory.h"
#include "runtime/isa.h"

namespace fusedstep::bind {
namespace {

bool is_numpy_bool(py::handle value) {
  static const py::handle numpy_bool = py::object(py::module_::import("numpy").attr("bool_")).release();
  return Py_TYPE(value.ptr()) == reinterpret_cast<PyTypeObject*>(numpy_bool.ptr());
}

// What is no real number, though NumPy makes one of it: text, a complex number, an array with axes or of truth values.
bool only_converts(py::handle value) {
  static const py::handle complex = py::object(py::module_::import("numpy").attr("complexfloating")).release();
  if (PyUnicode_Check(value.ptr()) || PyBytes_Check(value.ptr())) return true;
  if (PyObject_TypeCheck(value.ptr(), reinterpret_cast<PyTypeObject*>(complex.ptr())) != 0) return true;
  if (!is_array(value)) return false;
  const char kind = kind_of(value);
  return axes_of(value) > 0 || !(kind == 'i' || kind == 'u' || kind == 'f');
}

const char* expected_of(const Field& field, double value) {
  const bool finite = std::isfinite(value);
  switch (field.domain) {
    case Domain::non_negative:
      return value >= 0.0 && finite ? nullptr : "finite number >= 0";
    case Domain::positive:
      return value > 0.0 && finite ? nullptr : "finite number > 0";
    case Domain::unit_interval:
      return value >= 0.0 && value < 1.0 ? nullptr : "number in [0, 1)";
    case Domain::finite:
      return finite ? nullptr : "finite number";
    case Domain::growth:
      return value >= 1.0 ? nullptr : "number >= 1";
    case Domain::whole:
      return value >= 0.0 && finite && value == std::floor(value) ? nullptr : "whole number >= 0";
    case Domain::flag:
    case Domain::choice:
      break;
  }
  return nullptr;
}

void check_domain(const Field& field, double value, py::handle given) {
  const char* expected = expected_of(field, value);
  if (expected == nullptr && std::isinf(value) && PyLong_Check(given.ptr()) != 0)
    expected = "number that a double holds";
  if (expected == nullptr) return;
  std::string text = expected;
  if (field.count > 1) text.insert(text.find("number") + 6, "s");
  value_error({field.name}, "expected " + std::string(field.count > 1 ? "" : "a ") + text +
                                (field.optional ? ", or None" : "") + ", got " + shown(given));
}

double choice(const Field& field, py::handle given) {
  std::string known;
  for (int k = 0; field.choices[k] != nullptr; ++k) {
    if (is_text(given, field.choices[k])) return k;
    known += (k > 0 ? " or '" : "'") + std::string(field.choices[k]) + "'";
  }
  const std::string message = "expected " + known + (field.optional ? ", or None" : "") + ", got " + shown(given);
  if (!py::isinstance<py::str>(given)) type_error({field.name}, message);
  value_error({field.name}, message);
}

constexpr double kNone = NAN;

// The reference computes with the arrays, and a subclass may redefine arithmetic.
void strip(std::vector<Item>& items) {
  const auto strip_one = [](py::object& array) {
    if (array) array = plain(array);
  };
  for (Item& item : items) {
    for (py::object* array : {&item.param, &item.grad, &item.rows, &item.ema, &item.master}) strip_one(*array);
    for (int s = 0; s < kMaxStates; ++s) {
      strip_one(item.state[s]);
      strip_one(item.scales[s]);
    }
  }
}
// As in reference/sums.py.
bool in_range(double sum) { return std::fabs(sum) >= 0x1p-970 && std::isfinite(sum); }

void fetch_shapes(const Item& item) {
  const auto fetch = [](const py::object& array) {
    if (array && is_array(array)) __builtin_prefetch(py::detail::array_proxy(array.ptr())->dimensions);
  };
  fetch(item.param);
  fetch(item.grad);
  for (const py::object& state : item.state) fetch(state);
}

}  // namespace

py::tuple Geometry::lengths() const {
  py::tuple all{shape.size()};
  for (std::size_t i = 0; i < shape.size(); ++i) all[i] = shape[i];
  return all;
}

std::string Geometry::text() const { return "shape " + shown(lengths()) + " and " + dtype_name(dtype); }

Geometry geometry_of(py::handle owner, py::handle array, const Label& label) {
  const auto* a = py::detail::array_proxy(array.ptr());
  return {owner,
          inspect_stored(array, label).dtype,
          py::reinterpret_borrow<py::object>(a->descr),
          {a->dimensions, a->dimensions + a->nd},
          {a->strides, a->strides + a->nd}};
}

double root_of(const Ranged& squares, double divisor) {
  return std::ldexp(std::sqrt(squares.value) / divisor, squares.exponent / 2);
}

Ranged total_of(const std::vector<Ranged>& parts) {
  double plain = 0.0;
  int largest = std::numeric_limits<int>::min();
  bool scaled = false;
  for (const Ranged& part : parts) {
    plain += part.value;
    scaled = scaled || part.exponent != 0;
    if (part.value != 0.0 && std::isfinite(part.value))
      largest = std::max(largest, std::ilogb(part.value) + part.exponent);
  }
  const bool finite =
      std::all_of(parts.begin(), parts.end(), [](const Ranged& part) { return std::isfinite(part.value); });
  if (!finite || (!scaled && in_range(plain)) || largest == std::numeric_limits<int>::min()) return {plain, 0};
  Ranged total = {0.0, largest - (largest & 1)};
  for (const Ranged& part : parts) total.value += std::ldexp(part.value, part.exponent - total.exponent);
  return total;
}

py::handle get(py::handle dict, py::handle key) {
  const py::handle value = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (!value && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return value;
}

bool flag(py::handle value, const char* name) {
  if (value.ptr() == Py_True) return true;
  if (value.ptr() == Py_False) return false;
  if (is_numpy_bool(value)) return PyObject_IsTrue(value.ptr()) == 1;
  type_error({name}, "expected True or False, got " + shown(value));
}

double number(py::handle value, const char* name) {
  if (PyFloat_CheckExact(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
  if (PyBool_Check(value.ptr()) || is_numpy_bool(value) || only_converts(value)) {
    type_error({name}, "expected a number, got " + kind_text(value));
  }
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1.0 && PyErr_Occurred() != nullptr) {
    if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
      PyErr_Clear();
      const int negative = PyObject_RichCompareBool(value.ptr(), py::int_(0).ptr(), Py_LT);
      if (negative < 0) throw py::error_already_set();
      return negative == 1 ? -HUGE_VAL : HUGE_VAL;
    }
    // An array or tensor of many numbers says one of these.
    for (PyObject* kind : {PyExc_TypeError, PyExc_ValueError, PyExc_RuntimeError}) {
      if (!PyErr_ExceptionMatches(kind)) continue;
      PyErr_Clear();
      type_error({name}, "expected a number, got " + kind_text(value));
    }
    throw py::error_already_set();
  }
  return number;
}

double number_or_infinity(py::handle value, const char* name) {
  const double given = number(value, name);
  if (std::isinf(given) && PyLong_Check(value.ptr()) != 0) {
    value_error({name}, "expected a number that a double holds, got " + shown(value));
  }
  return given;
}

namespace {

Dtype state_dtype(py::handle given) {
  if (is_text(given, "float32")) return Dtype::float32;
  if (is_text(given, "bfloat16")) return Dtype::bfloat16;
  if (is_text(given, "8bit")) return Dtype::unsigned8;
  value_error({"state_dtype"}, "expected 'float32', 'bfloat16' or '8bit', got " + shown(given));
}

// A Python integer, or NumPy's, in [0, 2^63).
std::int64_t count_of(py::handle given, const char* name) {
  std::int64_t value = -1;
  if (PyBool_Check(given.ptr()) == 0 && PyIndex_Check(given.ptr()) != 0) {
    const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(given.ptr()));
    value = index ? PyLong_AsLongLong(index.ptr()) : -1;
    PyErr_Clear();
  }
  if (value < 0) {
    const bool large =
        PyLong_Check(given.ptr()) != 0 && PyObject_RichCompareBool(given.ptr(), py::int_(0).ptr(), Py_GT);
    value_error({name},
                std::string("expected a whole number >= 0") + (large ? " and < 2**63" : "") + ", got " + shown(given));
  }
  return value;
}

int bits_of(Dtype stored) { return 8 * int(item_bytes(stored)); }

// One value everywhere, which of 8 bits is the largest code.
void fill(py::object& made, py::object& scales, Dtype stored, double value) {
  static const py::handle codec = py::module_::import("fusedstep.reference.codec").release();
  if (!is_code(stored)) {
    const py::object one = py::module_::import("numpy").attr("array")(value, numpy_dtype(Dtype::float32));
    made[py::ellipsis()] = bits_of(stored) == 16 ? codec.attr("narrowed")(one, made.attr("dtype")) : py::float_(value);
    return;
  }
  const py::object one = py::module_::import("numpy").attr("full")(1, value, numpy_dtype(Dtype::float32));
  const py::tuple coded = codec.attr("encode_8bit")(one, stored == Dtype::signed8);
  made[py::ellipsis()] = coded[0];
  scales[py::ellipsis()] = coded[1];
}

}  // namespace

Engine::Engine(const std::string& name, Naming naming)
    : rule_([&]() -> const runtime::Rule& {
        if (const runtime::Rule* rule = runtime::find_rule(name)) return *rule;
        throw py::value_error("rule: '" + name + "' is not a rule");
      }()),
      naming_(naming) {
  for (const Field& field : rule_.fields) {
    field_names_.push_back(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(field.name)));
  }
  for (const char* state : rule_.states) scales_names_.push_back(std::string(state) + "_scale");
  int at = 0;
  for (const Field& field : rule_.fields) {
    if (std::strcmp(field.name, "lr") == 0) lr_ = at;
    at += field.count;
  }
}

void Engine::read_field(const Field& field, py::handle given, double* out) const {
  if (field.optional && given.is_none()) {
    *out = kNone;
  } else if (field.domain == Domain::flag) {
    *out = flag(given, field.name) ? 1.0 : 0.0;
  } else if (field.domain == Domain::choice) {
    *out = choice(field, given);
  } else {
    *out = number(given, field.name);
    check_domain(field, *out, given);
  }
}

Settings Engine::read(py::handle group, Schedules schedules, std::int64_t taken, double last_lr) const {
  static const py::handle maximize_key = PyUnicode_InternFromString("maximize");
  static const py::handle ema_key = PyUnicode_InternFromString("ema_decay");
  static const py::handle warmup_key = PyUnicode_InternFromString("ema_warmup");
  static const py::handle cautious_key = PyUnicode_InternFromString("cautious");
  static const py::handle state_dtype_key = PyUnicode_InternFromString("state_dtype");
  static const py::handle least_8bit_key = PyUnicode_InternFromString("min_8bit_size");
  static const py::handle master_key = PyUnicode_InternFromString("master_weights");
  static const py::handle random_key = PyUnicode_InternFromString("stochastic_rounding");
  static const py::handle seed_key = PyUnicode_InternFromString("seed");
  static const py::handle norm_key = PyUnicode_InternFromString("max_grad_norm");
  static const py::handle skip_key = PyUnicode_InternFromString("skip_nonfinite");
  static const py::handle telemetry_key = PyUnicode_InternFromString("telemetry");
  Settings settings;
  const auto option = [&](py::handle key) {
    const py::handle given = get(group, key);
    settings.keys += given ? 1 : 0;
    return given;
  };
  double* out = settings.hypers;
  for (std::size_t k = 0; k < rule_.fields.size(); ++k) {
    const Field& field = rule_.fields[k];
    const auto given = py::reinterpret_borrow<py::object>(get(group, field_names_[k]));
    if (!given) value_error({field.name}, "missing");
    ++settings.keys;
    if (field.count > 1) {
      const std::string expected = "expected " + std::to_string(field.count) + " numbers, got ";
      if (!py::isinstance<py::tuple>(given) && !py::isinstance<py::list>(given)) {
        type_error({field.name}, expected + kind_text(given));
      }
      const auto values = py::reinterpret_borrow<py::sequence>(given);
      if (py::len(values) != std::size_t(field.count)) {
        value_error({field.name}, expected + std::to_string(py::len(values)));
      }
      for (int i = 0; i < field.count; ++i) {
        const py::object value = values[i];
        if (field.optional && value.is_none()) {
          *out++ = kNone;
          continue;
        }
        *out = number(value, field.name);
        check_domain(field, *out++, given);
      }
    } else if (out == settings.hypers + lr_ && schedules != Schedules::refuse && PyCallable_Check(given.ptr()) != 0) {
      if (schedules == Schedules::skip) {
        *out++ = 0.0;
        continue;
      }
      const py::object scheduled = given(taken);
      read_field(field, scheduled, out);
      if (rule_.begins_with_lr && taken > 0) {
        if (std::isnan(last_lr)) last_lr = number(given(taken - 1), field.name);
        settings.anew = *out > last_lr;
      }
      ++out;
    } else {
      read_field(field, given, out++);
    }
  }
  if (const char* reason = rule_.refuse(settings.hypers)) throw py::value_error(reason);
  settings.variant = rule_.variant(settings.hypers);
  settings.coupled_decay = rule_.coupled_decay(settings.hypers);
  if (const py::handle given = option(maximize_key)) settings.maximize = flag(given, "maximize");
  const auto average = py::reinterpret_borrow<py::object>(option(ema_key));
  if (average && !average.is_none()) {
    settings.average = true;
    settings.ema_decay = number(average, "ema_decay");
    check_domain({"ema_decay", Domain::unit_interval}, settings.ema_decay, average);
  }
  if (const py::handle given = option(warmup_key)) {
    settings.ema_warmup = flag(given, "ema_warmup");
    if (settings.ema_warmup && !settings.average) {
      throw py::value_error("ema_warmup: expected False without ema_decay, which it is for");
    }
  }
  if (const py::handle given = option(cautious_key)) {
    settings.cautious = flag(given, "cautious");
    if (settings.cautious && !rule_.cautious) {
      throw py::value_error("cautious: does not apply to " + std::string(rule_.name));
    }
  }
  if (const py::handle given = option(state_dtype_key)) settings.state_dtype = state_dtype(given);
  if (settings.state_dtype != Dtype::float32) {
    const int bits = bits_of(settings.state_dtype);
    if (const char* reason = rule_.refuse_bits(settings.hypers, bits)) {
      value_error({"state_dtype"},
                  std::string(rule_.name) + " cannot have states of " + std::to_string(bits) + " bits: " + reason);
    }
  }
  if (const py::handle given = option(least_8bit_key)) settings.least_8bit = count_of(given, "min_8bit_size");
  if (const py::handle given = option(master_key)) settings.master = flag(given, "master_weights");
  if (const py::handle given = option(random_key)) settings.random_param = flag(given, "stochastic_rounding");
  if (const py::handle given = option(seed_key)) settings.seed = std::uint64_t(count_of(given, "seed"));
  if (settings.master && settings.random_param) {
    throw py::value_error("stochastic_rounding: expected False with master_weights, which nothing is lost from");
  }
  const auto norm = py::reinterpret_borrow<py::object>(option(norm_key));
  if (norm && !norm.is_none()) {
    settings.whole.clip = true;
    settings.whole.max_grad_norm = number_or_infinity(norm, "max_grad_norm");
    if (!(settings.whole.max_grad_norm > 0.0)) {
      value_error({"max_grad_norm"}, "expected a number > 0, or None, got " + shown(norm));
    }
  }
  if (const py::handle given = option(skip_key)) settings.whole.skip_nonfinite = flag(given, "skip_nonfinite");
  if (const py::handle given = option(telemetry_key)) settings.whole.telemetry = flag(given, "telemetry");
  return settings;
}

int Engine::variant_for(const Settings& settings, py::handle param) const {
  const int variant = is_array(param) ? rule_.variant_of(settings.hypers, axes_of(param)) : -1;
  return variant < 0 ? settings.variant : variant;
}

Label Engine::label(py::ssize_t index, int owner) const {
  const bool function = naming_ == Naming::function;
  if (owner == kParam) return {function ? "param" : "params", index, nullptr, groups_.ptr()};
  if (owner == kGrad) return {function ? "grad" : "grads", index, nullptr, groups_.ptr()};
  const char* name = owner == kAverage  ? "ema"
                     : owner == kMaster ? "master"
                     : owner >= kScales ? scales_names_[std::size_t(owner - kScales)].c_str()
                     : owner < states() ? rule_.states[std::size_t(owner)]
                                        : rule_.scalars[std::size_t(owner - states())];
  if (function) return {name, index};
  return {"state", index, name};
}

void Engine::view_grad(Item& item, bool& foreign) const {
  static const py::handle row_sparse =
      py::object(py::module_::import("fusedstep._common.sparse").attr("RowSparse")).release();
  if (is_array(item.grad)) {
    if (!rule_.dense) {
      type_error(grad_label(item), "expected a fusedstep.RowSparse gradient, got " + kind_text(item.grad));
    }
  } else if (py::isinstance(item.grad, row_sparse)) {
    if (!rule_.sparse) type_error(grad_label(item), std::string(rule_.name) + " takes no row-sparse gradient");
    const std::string got = py::str(item.grad.attr("shape"));
    if (is_array(item.param) && got != shape_text(item.param)) {
      value_error(grad_label(item),
                  "expected shape " + shape_text(item.param) + " as " + param_label(item).text() + " has, got " + got);
    }
    const py::tuple parts = item.grad.attr("coalesced")(grad_label(item).text());
    item.rows = parts[0];
    item.grad = parts[1];
    foreign = true;
  } else {
    item.grad = bind::view(item.grad, grad_label(item), &foreign);
  }
}

void Engine::view(std::vector<Item>& items) const {
  bool foreign = false;
  for (Item& item : items) {
    item.param = bind::view(item.owner, param_label(item), &foreign);
    view_grad(item, foreign);
    // What a table gave a moment ago needs no second look.
    if (is_array(item.owner)) require_alive(item.param, param_label(item));
    require_alive(item.grad, grad_label(item));
  }
  if (!foreign) return;
  for (const Item& item : items) {
    require_alive(item.param, param_label(item));
    require_alive(item.grad, grad_label(item));
  }
}

void Engine::view_states(Item& item) const {
  const auto look = [&](py::object& array, int owner) {
    if (!array || array.is_none()) return;
    if (!is_array(array)) array = bind::view(array, label(item.index, owner));
    require_alive(array, label(item.index, owner));
  };
  for (int s = 0; s < states(); ++s) {
    look(item.state[s], s);
    look(item.scales[s], kScales + s);
  }
  look(item.ema, kAverage);
  look(item.master, kMaster);
}

void Engine::inspect_param(const Item& item, runtime::StepTensor& tensor) {
  const Label label = param_label(item);
  const Array param = inspect_stored(item.param, label);
  require_dense(item.param, label);
  require_writable(item.param, label);
  if (const char* reason = rule_.refuse_axes(axes_of(item.param))) {
    value_error(label, std::string(reason) + ", got shape " + shape_text(item.param));
  }
  written_.push_back({param.data, param.bytes, std::int32_t(item.index), kParam});
  tensor.args.param = param.data;
  tensor.size = param.size;
  tensor.dtype = maths_dtype(param.dtype);
  tensor.args.param_dtype = param.dtype;
}

// The gradient's dtype: the parameter's, or any whose values the arithmetic holds.
void Engine::require_grad_dtype(const Item& item, const Array& grad, const runtime::StepTensor& tensor) const {
  if (tensor.dtype == Dtype::float32 && grad.dtype != Dtype::float64) return;
  require_same_dtype(item.grad, grad_label(item), item.param, param_label(item));
}

void Engine::inspect_grad(Item& item, runtime::StepTensor& tensor) {
  const Label label = grad_label(item);
  Array grad = inspect_stored(item.grad, label);
  require_grad_dtype(item, grad, tensor);
  require_same_shape(item.grad, label, item.param, param_label(item));
  if (!same_layout(item.grad, item.param)) {
    py::object copy = array_like(item.param, "empty_like", descr_of(item.grad));
    copy[py::ellipsis()] = plain(item.grad);
    grad = inspect_stored(copy, label);
    item.grad = std::move(copy);
  }
  tensor.args.grad_dtype = grad.dtype;
  read_.push_back({grad.data, grad.bytes, std::int32_t(item.index), kGrad});
  tensor.args.grad = grad.data;
}

void Engine::inspect_rows(const Item& item, const Settings& settings, runtime::StepTensor& tensor) {
  const Label label = grad_label(item);
  if (const char* reason = rule_.refuse_sparse(settings.hypers)) {
    value_error(label, "with a row-sparse gradient " + std::string(reason));
  }
  if (settings.average) {
    value_error(label, "ema_decay does not apply to a row-sparse gradient: it would move rows that have none");
  }
  const Array grad = inspect_stored(item.grad, label);
  require_grad_dtype(item, grad, tensor);
  tensor.args.grad_dtype = grad.dtype;
  if (!is_contiguous(item.param)) value_error(param_label(item), "expected rows in one piece: a C-contiguous array");
  require_rows(item.rows, item.grad, item.param, label);
  tensor.args.grad = grad.data;
  tensor.rows = reinterpret_cast<const std::int64_t*>(py::detail::array_proxy(item.rows.ptr())->data);
  tensor.row_count = shape_of(item.rows)[0];
  tensor.row_size = tensor.row_count == 0 ? 0 : grad.size / tensor.row_count;
}

// How a new state is stored. What begins as a copy of the parameter, or needs all its bits otherwise, keeps them.
Dtype Engine::dtype_of_state(const Settings& settings, const runtime::StepTensor& tensor, int s) const {
  if (tensor.dtype == Dtype::float64 || (rule_.exact >> s & 1)) return tensor.dtype;
  if (!is_code(settings.state_dtype)) return settings.state_dtype;
  if (tensor.size < settings.least_8bit) return Dtype::float32;
  return rule_.squares >> s & 1 ? Dtype::unsigned8 : Dtype::signed8;
}

// An array beside the parameter, of whatever dtype.
Array Engine::inspect_state(const Item& item, py::handle object, int owner) {
  const Label label = this->label(item.index, owner);
  const Shape shape = owner < 0 ? Shape::same : rule_.shapes[std::size_t(owner)];
  const Array array = owner < 0 ? inspect_stored(object, label) : inspect_coded(object, label);
  if (shape == Shape::same) {
    require_same_shape(object, label, item.param, param_label(item));
    if (!same_layout(object, item.param))
      value_error(label, "expected the memory layout of " + param_label(item).text());
  } else {
    const std::string expected = py::str(reduced_shape(item.param, shape));
    if (shape_text(object) != expected)
      value_error(label, "expected shape " + expected + ", got " + shape_text(object));
    require_dense(object, label);
  }
  require_writable(object, label);
  written_.push_back({array.data, array.bytes, std::int32_t(item.index), owner});
  return array;
}

// One in the dtype of the arithmetic.
char* Engine::inspect_whole(const Item& item, const runtime::StepTensor& tensor, py::handle object, int owner) {
  const Array array = inspect_state(item, object, owner);
  if (array.dtype != tensor.dtype) {
    type_error(label(item.index, owner), std::string("expected dtype ") + dtype_name(tensor.dtype) + " beside " +
                                             param_label(item).text() + " of " + dtype_text(item.param) + ", got " +
                                             dtype_text(object));
  }
  return array.data;
}

void Engine::inspect_scales(const Item& item, const runtime::StepTensor& tensor, int s, float** out) {
  const Label label = this->label(item.index, kScales + s);
  if (!item.scales[s]) {
    value_error(label, "missing, and " + this->label(item.index, s).text() + " is of 8 bits, which need it");
  }
  const Array array = inspect_contiguous_float32(item.scales[s], label, true);
  const std::string expected = "(" + std::to_string(scales_of(tensor.size)) + ",)";
  if (shape_text(item.scales[s]) != expected) {
    value_error(label, "expected shape " + expected + ", one per " + std::to_string(kScaled) + " elements of " +
                           param_label(item).text() + ", got " + shape_text(item.scales[s]));
  }
  written_.push_back({array.data, array.bytes, std::int32_t(item.index), kScales + s});
  *out = reinterpret_cast<float*>(array.data);
}

// A state says itself how it is stored.
Dtype Engine::inspect_stored_state(const Item& item, const Settings& settings, const runtime::StepTensor& tensor, int s,
                                   StepArgs& args) {
  if (tensor.dtype == Dtype::float64 || (rule_.exact >> s & 1)) {
    args.state[args.states] = inspect_whole(item, tensor, item.state[s], s);
    return tensor.dtype;
  }
  const Array array = inspect_state(item, item.state[s], s);
  args.state[args.states] = array.data;
  const Label label = this->label(item.index, s);
  if (array.dtype == Dtype::float64) {
    type_error(label, "expected dtype float32, float16, bfloat16 or uint8 beside " + param_label(item).text() + " of " +
                          dtype_text(item.param) + ", got float64");
  }
  if (array.dtype == Dtype::float32) return array.dtype;
  const int bits = bits_of(array.dtype);
  if (const char* reason = rule_.refuse_bits(settings.hypers, bits)) {
    value_error(label, std::string(rule_.name) + " cannot have states of " + std::to_string(bits) + " bits: " + reason);
  }
  if (!is_code(array.dtype)) return array.dtype;
  inspect_scales(item, tensor, s, &args.scales[args.states]);
  return rule_.squares >> s & 1 ? Dtype::unsigned8 : Dtype::signed8;
}

void Engine::inspect_item(Item& item, const Settings& settings, double grad_scale) {
  tensors_.push_back({});
  runtime::StepTensor& tensor = tensors_.back();
  StepArgs& args = tensor.args;
  inspect_param(item, tensor);
  if (item.rows) {
    inspect_rows(item, settings, tensor);
  } else {
    inspect_grad(item, tensor);
  }
  const bool narrow = args.param_dtype == Dtype::float16 || args.param_dtype == Dtype::bfloat16;
  if (narrow && settings.master) {
    args.copy = args.param;
    args.copy_dtype = args.param_dtype;
    args.param_dtype = Dtype::float32;
    args.param = item.master ? inspect_whole(item, tensor, item.master, kMaster) : nullptr;
  }
  args.random_param = narrow && settings.random_param;
  args.key = rounding_key(settings.seed, item.step, std::max<py::ssize_t>(item.index, 0));
  args.coded = narrow || args.grad_dtype != tensor.dtype;
  std::int64_t state_bytes = 0;
  for (int s = 0; s < states(); ++s) {
    if (!keeps(item, s)) continue;
    Dtype& stored = args.state_dtype[args.states];
    stored =
        item.state[s] ? inspect_stored_state(item, settings, tensor, s, args) : dtype_of_state(settings, tensor, s);
    if (item.rows && is_code(stored)) {
      value_error(grad_label(item), "a row-sparse gradient does not go with states of 8 bits, which share scales");
    }
    args.coded = args.coded || stored != tensor.dtype;
    state_bytes += 2 * item_bytes(stored);
    ++args.states;
  }
  for (int s = 0; s < scalars(); ++s) {
    const py::object& scalar = item.scalar_array[s];
    if (scalar) {
      written_.push_back({py::detail::array_proxy(scalar.ptr())->data, std::int64_t(sizeof(double)),
                          std::int32_t(item.index), states() + s});
    }
  }
  args.ema = settings.average && item.ema ? inspect_whole(item, tensor, item.ema, kAverage) : nullptr;
  args.grad_factor = (settings.maximize ? -1.0 : 1.0) / grad_scale;
  args.decay = settings.coupled_decay;
  args.ema_decay = settings.ema_decay;
  if (settings.ema_warmup)
    args.ema_decay = std::min(args.ema_decay, (1.0 + double(item.step)) / (10.0 + double(item.step)));
  tensor.bytes_per_element = 2 * item_bytes(args.param_dtype) + item_bytes(args.grad_dtype) + state_bytes +
                             2 * settings.average * item_bytes(tensor.dtype) +
                             (args.copy != nullptr ? 2 * item_bytes(args.copy_dtype) : 0);
}

// The arrays that are written must overlap neither each other nor a gradient. They are sorted once, for as long as
// they stay where they are.
void Engine::refuse_overlaps() {
  const auto overlap = [](const Span& a, const Span& b) {
    return a.bytes > 0 && b.bytes > 0 && a.data < b.data + b.bytes && b.data < a.data + a.bytes;
  };
  const auto refuse = [&](const Span& a, const Span& b) {
    value_error(label(a.index, a.owner), "overlaps " + label(b.index, b.owner).text() + " in memory");
  };
  const auto same = [](const Span& a, const Span& b) { return a.data == b.data && a.bytes == b.bytes; };
  const bool seen = std::equal(seen_.begin(), seen_.end(), written_.begin(), written_.end(), same);
  if (seen && std::equal(seen_read_.begin(), seen_read_.end(), read_.begin(), read_.end(), same)) return;
  seen_read_.clear();
  if (!seen) {
    seen_.clear();
    sorted_.clear();
    for (const Span& span : written_) {
      if (span.bytes > 0) sorted_.push_back(span);
    }
    std::stable_sort(sorted_.begin(), sorted_.end(), [](const Span& a, const Span& b) { return a.data < b.data; });
    for (std::size_t k = 1; k < sorted_.size(); ++k) {
      if (overlap(sorted_[k - 1], sorted_[k])) refuse(sorted_[k], sorted_[k - 1]);
    }
    seen_ = written_;
  }
  for (const Span& grad : read_) {
    const auto after = std::lower_bound(sorted_.begin(), sorted_.end(), grad.data + grad.bytes,
                                        [](const Span& span, const char* end) { return span.data < end; });
    if (after != sorted_.begin() && overlap(*(after - 1), grad)) refuse(grad, *(after - 1));
  }
  seen_read_ = read_;
}

std::vector<Geometry> Engine::check_params(const std::vector<py::handle>& params) {
  std::vector<Item> items(params.size());
  for (std::size_t k = 0; k < params.size(); ++k) {
    items[k].index = py::ssize_t(k);
    items[k].owner = py::reinterpret_borrow<py::object>(params[k]);
    items[k].param = bind::view(items[k].owner, param_label(items[k]));
  }
  written_.clear();
  read_.clear();
  std::vector<Geometry> known;
  for (const Item& item : items) {
    runtime::StepTensor unused = {};
    if (is_array(item.param)) require_alive(item.param, param_label(item));
    inspect_param(item, unused);
    known.push_back(geometry_of(item.owner, item.param, param_label(item)));
  }
  refuse_overlaps();
  return known;
}

// Of the kept states the `kept`-th.
void Engine::make_state(Item& item, const Settings& settings, runtime::StepTensor& tensor, int s, int kept) const {
  static const py::handle zeros = py::object(py::module_::import("numpy").attr("zeros")).release();
  const Dtype stored = tensor.args.state_dtype[kept];
  const Shape shape = rule_.shapes[std::size_t(s)];
  const double value = rule_.initial(settings.hypers, s);
  py::object made;
  if (shape != Shape::same) {
    made = zeros(reduced_shape(item.param, shape), numpy_dtype(stored));
  } else if (rule_.copies >> s & 1) {
    made = array_like(item.param, "empty_like", numpy_dtype(stored));
    copy_values(item.param, made);
  } else {
    made = array_like(item.param, "zeros_like", numpy_dtype(stored));
    if (is_code(stored)) {
      item.scales[s] = zeros(scales_of(tensor.size), numpy_dtype(Dtype::float32));
      tensor.args.scales[kept] =
          static_cast<float*>(static_cast<void*>(py::detail::array_proxy(item.scales[s].ptr())->data));
    }
  }
  if (value != 0.0) fill(made, item.scales[s], stored, value);
  item.state[s] = made;
  tensor.args.state[kept] = py::detail::array_proxy(made.ptr())->data;
}

void Engine::make_states(std::vector<Item>& items, const std::vector<Settings>& groups) {
  for (std::size_t k = 0; k < items.size(); ++k) {
    Item& item = items[k];
    StepArgs& args = tensors_[k].args;
    const Settings& settings = groups[std::size_t(item.group)];
    int kept = 0;
    for (int s = 0; s < states(); ++s) {
      if (!keeps(item, s)) continue;
      if (!item.state[s]) make_state(item, settings, tensors_[k], s, kept);
      ++kept;
    }
    const auto copy_of_param = [&] {
      py::object made = array_like(item.param, "empty_like", numpy_dtype(tensors_[k].dtype));
      copy_values(item.param, made);
      return made;
    };
    if (settings.average && !item.ema) {
      item.ema = copy_of_param();
      item.ema_made = true;
      args.ema = py::detail::array_proxy(item.ema.ptr())->data;
    }
    if (args.copy != nullptr && !item.master) {
      item.master = copy_of_param();
      item.master_made = true;
      args.param = py::detail::array_proxy(item.master.ptr())->data;
    }
  }
}

void Engine::set_coefficients(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared) {
  const std::size_t bytes = items.size() * kMaxCoefficientBytes;
  if (coefficients_.size() < bytes) coefficients_.resize(bytes);
  for (std::size_t k = 0; k < items.size(); ++k) {
    Item& item = items[k];
    runtime::StepTensor& tensor = tensors_[k];
    unsigned char* out = coefficients_.data() + k * kMaxCoefficientBytes;
    tensor.args.coefficients = out;
    if (k > 0) {
      const Item& last = items[k - 1];
      if (item.group == last.group && item.step == last.step && item.first == last.first &&
          tensor.dtype == tensors_[k - 1].dtype && std::equal(item.scalars, item.scalars + scalars(), last.scalars)) {
        std::copy(last.advanced, last.advanced + kMaxScalars, item.advanced);
        // What settles from a tensor's own sums is not shared.
        if (rule_.sums == 0) {
          tensor.args.coefficients = tensors_[k - 1].args.coefficients;
        } else {
          std::memcpy(out, out - kMaxCoefficientBytes, kMaxCoefficientBytes);
        }
        continue;
      }
    }
    std::copy(item.scalars, item.scalars + kMaxScalars, item.advanced);
    rule_.coefficients(groups[std::size_t(item.group)].hypers, {item.step, item.first}, tensor.dtype,
                       rule_.shared_scalars ? shared : item.advanced, out);
  }
}

// The sums that a rule, or a cautious mask, needs before the update, and what follows from them.
void Engine::measure(const std::vector<Item>& items, const std::vector<Settings>& groups, double* shared) {
  bool needed = false;
  for (std::size_t k = 0; k < items.size(); ++k) {
    const bool cautious = groups[std::size_t(items[k].group)].cautious;
    StepArgs& args = tensors_[k].args;
    args.measure = table_->measure[rule_.index][int(tensors_[k].dtype)][items[k].variant][cautious];
    args.measures = cautious ? 1 : rule_.sums;
    needed = needed || args.measures > 0;
  }
  if (!needed) return;
  {
    const py::gil_scoped_release released;
    step_.run(table_->measure_sums, sums_);
  }
  double totals[kMaxMeasures] = {};
  for (std::size_t k = 0; k < items.size(); ++k) {
    const Settings& settings = groups[std::size_t(items[k].group)];
    double* sums = &sums_[k * kStepSums];
    if (rule_.norms) {
      const bool lost = tensors_[k].dtype == Dtype::float64 && !std::all_of(sums, sums + rule_.sums, in_range);
      py::list norms;
      if (lost) {
        norms = py::module_::import("fusedstep.reference.step")
                    .attr("norms_again")(rule_.name, describe(items[k], settings, tensors_[k].args), py::dict());
      }
      for (int s = 0; s < rule_.sums; ++s) sums[s] = lost ? norms[std::size_t(s)].cast<double>() : std::sqrt(sums[s]);
    }
    if (settings.cautious) tensors_[k].args.scale = double(tensors_[k].size) / (sums[0] + 1.0);
    if (!rule_.shared_scalars) continue;
    rule_.weigh(settings.hypers, {items[k].step, items[k].first}, shared, sums);
    for (int s = 0; s < rule_.sums; ++s) totals[s] += sums[s];
  }
  if (rule_.shared_scalars) rule_.share(groups[0].hypers, totals, shared);
  if (rule_.sums == 0) return;
  for (std::size_t k = 0; k < items.size(); ++k) {
    rule_.settle(groups[std::size_t(items[k].group)].hypers, tensors_[k].dtype, &sums_[k * kStepSums], shared,
                 coefficients_.data() + k * kMaxCoefficientBytes);
  }
}

// From sums_: kGradSquares and kNonFinite of each item.
void Engine::total_gradient(double grad_scale) {
  std::vector<Ranged> squares;
  double nonfinite = 0.0;
  for (std::size_t k = 0; k < sums_.size(); k += kStepSums) {
    squares.push_back({sums_[k + kGradSquares], exponents_.empty() ? 0 : exponents_[k + kGradSquares]});
    nonfinite += sums_[k + kNonFinite];
  }
  squares_ = total_of(squares);
  outcome_.has_norm = true;
  outcome_.grad_norm = root_of(squares_, grad_scale);
  outcome_.nonfinite = nonfinite;
}

// Sums of doubles that went out of range, by the reference, which is the same for all sets. Telemetry, where there
// are parameters before the step; else the gradients' squares.
void Engine::measure_again(const std::vector<Item>& items, const std::vector<py::object>& before) {
  const py::module_ reference = py::module_::import("fusedstep.reference.step");
  for (std::size_t k = 0; k < items.size(); ++k) {
    const Item& item = items[k];
    double* sums = &sums_[k * kStepSums];
    const bool telemetry = !before.empty();
    bool lost = false;
    for (int s = 0; s < (telemetry ? kStepSums : 1); ++s) lost = lost || (s != kNonFinite && !in_range(sums[s]));
    if (tensors_[k].dtype != Dtype::float64 || tensors_[k].size == 0 || !lost) continue;
    const py::object rows = item.rows ? item.rows : py::object(py::none());
    py::list again;
    if (telemetry) {
      const bool averages = rule_.first_moment >= 0 && keeps(item, rule_.first_moment);
      const py::object moment = averages ? item.state[rule_.first_moment] : py::object(py::none());
      py::list totals;
      for (int s = 0; s < kStepSums; ++s) totals.append(sums[s]);
      again = reference.attr("measured_again")(totals, item.grad, before[k], item.param, moment, rows);
    } else {
      again.append(reference.attr("squares_again")(item.grad, bool(item.rows), sums[kGradSquares]));
    }
    exponents_.resize(sums_.size(), 0);
    for (std::size_t s = 0; s < again.size(); ++s) {
      const py::tuple parts = again[s];
      sums[s] = parts[0].cast<double>();
      exponents_[k * kStepSums + s] = parts[1].cast<int>();
    }
  }
}

void Engine::measure_gradient(const std::vector<Item>& items, double grad_scale) {
  if (table_ != nullptr) {
    const py::gil_scoped_release released;
    step_.run(table_->gradient_sums, sums_, runtime::Reads::gradient);
  } else {
    py::list grads;
    for (const Item& item : items) grads.append(py::make_tuple(item.grad, bool(item.rows)));
    const py::list all = py::module_::import("fusedstep.reference.step").attr("gradient_sums")(grads);
    sums_.assign(items.size() * kStepSums, 0.0);
    for (std::size_t k = 0; k < items.size(); ++k) {
      const py::tuple sums = all[k];
      sums_[k * kStepSums + kGradSquares] = sums[0].cast<double>();
      sums_[k * kStepSums + kNonFinite] = sums[1].cast<double>();
    }
  }
  exponents_.clear();
  measure_again(items, {});
  total_gradient(grad_scale);
}

const Outcome& Engine::run(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared,
                           double grad_scale, const Settle& settle) {
  written_out_ = false;
  // Its reciprocal must be a number in float32 too.
  if (!(std::isfinite(grad_scale) && grad_scale > 0.0 && std::isfinite(float(1.0 / grad_scale)) &&
        float(1.0 / grad_scale) > 0.0f)) {
    value_error({"grad_scale"}, "expected a finite number > 0, got " + std::string(py::str(py::float_(grad_scale))));
  }
  table_ = rule_.native ? runtime::active_table() : nullptr;
  written_.clear();
  read_.clear();
  tensors_.clear();
  tensors_.reserve(items.size());
  for (std::size_t k = 0; k < items.size(); ++k) {
    if (k + 2 < items.size()) fetch_shapes(items[k + 2]);
    inspect_item(items[k], groups[std::size_t(items[k].group)], grad_scale);
  }
  refuse_overlaps();
  if (table_ == nullptr) strip(items);

  outcome_.skipped = outcome_.has_norm = outcome_.measured = false;
  outcome_.clip_coefficient = 1.0;
  outcome_.sums.clear();
  step_.cut(tensors_);
  const WholeStep& whole = groups[0].whole;
  if (whole.clip || whole.skip_nonfinite) {
    measure_gradient(items, grad_scale);
    if (whole.skip_nonfinite && outcome_.nonfinite > 0.0) {
      outcome_.skipped = true;
      return outcome_;
    }
    if (whole.clip && std::isfinite(whole.max_grad_norm)) {
      // PyTorch's bound; the sum with 1e-6 keeps it from dividing by 0. NaN stays NaN.
      double coefficient = whole.max_grad_norm / (outcome_.grad_norm + 1e-6);
      if (std::isinf(outcome_.grad_norm) && std::isfinite(squares_.value)) {
        coefficient =
            std::ldexp(whole.max_grad_norm / (std::sqrt(squares_.value) / grad_scale), -squares_.exponent / 2);
      }
      outcome_.clip_coefficient = coefficient > 1.0 ? 1.0 : coefficient;
      for (runtime::StepTensor& tensor : tensors_) tensor.args.grad_factor *= outcome_.clip_coefficient;
    }
  }
  make_states(items, groups);
  const auto measured = [&] {
    outcome_.measured = true;
    if (!outcome_.has_norm) total_gradient(grad_scale);
    outcome_.sums.swap(sums_);
    outcome_.exponents.swap(exponents_);
  };
  if (table_ == nullptr) {
    const Writes writes = compute_reference(items, groups, shared);
    if (whole.telemetry) measured();
    settle(outcome_);
    writes.run();
    return outcome_;
  }
  prepare_native(items, groups, shared);
  std::vector<py::object> before;
  for (std::size_t k = 0; whole.telemetry && k < items.size(); ++k) {
    before.push_back(py::none());
    if (tensors_[k].dtype != Dtype::float64) continue;
    before[k] = array_like(items[k].param, "empty_like");
    copy_values(items[k].param, before[k]);
  }
  settle(outcome_);
  write_native(whole.telemetry);
  written_out_ = true;
  if (whole.telemetry) {
    exponents_.clear();
    measure_again(items, before);
    measured();
  }
  return outcome_;
}

// How all states are stored that may be narrow; -1: not all in one of the ways that loops are made for.
int Engine::fused_way(const Item& item, const StepArgs& args) const {
  int way = -1, kept = 0;
  for (int s = 0; s < states(); ++s) {
    if (!keeps(item, s)) continue;
    const Dtype stored = args.state_dtype[kept++];
    if (rule_.exact >> s & 1) continue;
    const int its = is_code(stored) ? kFused8bit : stored == Dtype::bfloat16 ? kFusedBfloat16 : -1;
    if (its < 0 || (way >= 0 && its != way)) return -1;
    way = its;
  }
  return way;
}

void Engine::prepare_native(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared) {
  set_coefficients(items, groups, shared);
  for (std::size_t k = 0; k < items.size(); ++k) {
    const bool cautious = groups[std::size_t(items[k].group)].cautious;
    StepArgs& args = tensors_[k].args;
    args.update = table_->update[rule_.index][int(tensors_[k].dtype)][items[k].variant][cautious];
    const int way = fused_way(items[k], args);
    args.fused = way < 0 ? nullptr : table_->fused[rule_.index][items[k].variant][cautious][way];
    args.watched = table_->watched[rule_.index][int(tensors_[k].dtype)][items[k].variant][cautious];
  }
  measure(items, groups, shared);
  if (groups[0].whole.telemetry) step_.reserve(sums_);
}

void Engine::write_native(bool telemetry) {
  const py::gil_scoped_release released;
  if (telemetry) {
    step_.run(table_->step, sums_);
  } else {
    step_.run(table_->step);
  }
}

// What the reference takes of a tensor.
py::dict Engine::describe(const Item& item, const Settings& settings, const StepArgs& args) const {
  py::dict hypers;
  const double* value = settings.hypers;
  const auto next = [&](const Field& field) -> py::object {
    const double x = *value++;
    if (field.optional && x != x) return py::none();
    if (field.domain == Domain::flag) return py::bool_(x != 0.0);
    if (field.domain == Domain::choice) return py::str(field.choices[int(x)]);
    return py::float_(x);
  };
  for (const Field& field : rule_.fields) {
    if (field.count > 1) {
      py::tuple values{std::size_t(field.count)};
      for (int i = 0; i < field.count; ++i) values[std::size_t(i)] = next(field);
      hypers[field.name] = values;
    } else {
      hypers[field.name] = next(field);
    }
  }
  py::dict kept, scalars;
  py::list squares;
  for (int s = 0; s < states(); ++s) {
    if (!keeps(item, s)) continue;
    const bool coded = bool(item.scales[s]);
    kept[rule_.states[std::size_t(s)]] = coded ? py::make_tuple(item.state[s], item.scales[s]) : item.state[s];
    if (rule_.squares >> s & 1) squares.append(rule_.states[std::size_t(s)]);
  }
  if (!rule_.shared_scalars) {
    for (std::size_t s = 0; s < rule_.scalars.size(); ++s) scalars[rule_.scalars[s]] = item.scalars[s];
  }
  py::dict tensor;
  tensor["param"] = item.param;
  tensor["grad"] = item.grad;
  tensor["rows"] = item.rows ? item.rows : py::object(py::none());
  tensor["states"] = kept;
  tensor["squares"] = squares;
  tensor["master"] = args.copy != nullptr ? item.master : py::object(py::none());
  tensor["random_param"] = args.random_param;
  tensor["key"] = args.key;
  tensor["ema"] = settings.average ? item.ema : py::object(py::none());
  tensor["hypers"] = hypers;
  tensor["step"] = item.step;
  tensor["first"] = item.first;
  tensor["scalars"] = scalars;
  tensor["cautious"] = settings.cautious;
  tensor["grad_factor"] = args.grad_factor;
  tensor["decay"] = args.decay;
  tensor["ema_decay"] = args.ema_decay;
  const bool averages = rule_.first_moment >= 0 && keeps(item, rule_.first_moment);
  tensor["first_moment"] =
      averages ? py::object(py::str(rule_.states[std::size_t(rule_.first_moment)])) : py::object(py::none());
  return tensor;
}

Writes Engine::compute_reference(std::vector<Item>& items, const std::vector<Settings>& groups, double* shared) {
  py::list tensors;
  for (std::size_t k = 0; k < items.size(); ++k) {
    tensors.append(describe(items[k], groups[std::size_t(items[k].group)], tensors_[k].args));
  }
  py::dict common;
  if (rule_.shared_scalars) {
    for (std::size_t s = 0; s < rule_.scalars.size(); ++s) common[rule_.scalars[s]] = shared[s];
  }
  // Gives what to write where and the sums of telemetry by tensor, and leaves the scalars advanced.
  const py::tuple computed = py::module_::import("fusedstep.reference.step")
                                 .attr("compute")(rule_.name, tensors, common, groups[0].whole.telemetry);
  const py::list pairs = computed[0], sums = computed[1];
  Writes writes;
  for (const py::handle pair : pairs) {
    const auto both = py::reinterpret_borrow<py::tuple>(pair);
    writes.add(both[0], both[1]);
  }
  for (std::size_t s = 0; s < rule_.scalars.size(); ++s) {
    const char* name = rule_.scalars[s];
    if (rule_.shared_scalars) {
      shared[s] = common[name].cast<double>();
    } else {
      for (std::size_t k = 0; k < items.size(); ++k) {
        items[k].advanced[s] = tensors[k]["scalars"][name].cast<double>();
      }
    }
  }
  if (!groups[0].whole.telemetry) return writes;
  exponents_.clear();
  sums_.assign(items.size() * kStepSums, 0.0);
  for (std::size_t k = 0; k < items.size(); ++k) {
    const py::list of_tensor = sums[k];
    for (std::size_t s = 0; s < kStepSums; ++s) {
      const py::tuple parts = of_tensor[s];
      sums_[k * kStepSums + s] = parts[0].cast<double>();
      const int exponent = parts[1].cast<int>();
      if (exponent != 0) exponents_.resize(sums_.size(), 0);
      if (!exponents_.empty()) exponents_[k * kStepSums + s] = exponent;
    }
  }
  return writes;
}

}  // namespace fusedstep::bind
