#include "bind/arguments.h"

#include <cmath>

#include "bind/arrays.h"

namespace fusedstep::bind {
namespace {

// The name of the parameter at a position, null where its group has none.
py::object name_in(PyObject* groups, py::ssize_t index) {
  for (const py::handle group : py::reinterpret_borrow<py::list>(groups)) {
    if (!PyDict_Check(group.ptr())) break;
    const py::handle params = PyDict_GetItemString(group.ptr(), "params");
    const py::handle names = PyDict_GetItemString(group.ptr(), "param_names");
    if (!params || !PyList_Check(params.ptr())) break;
    const py::ssize_t count = PyList_GET_SIZE(params.ptr());
    if (index < count) {
      const bool named = names && PyList_Check(names.ptr()) && index < PyList_GET_SIZE(names.ptr());
      return named ? py::reinterpret_borrow<py::object>(PyList_GET_ITEM(names.ptr(), index)) : py::object();
    }
    index -= count;
  }
  return {};
}

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

// A Python integer, or what stands for one; false where it is none. `overflows`, -1 or 1: 64 bits cannot hold it.
bool read_integer(py::handle value, long long& number, int& overflows) {
  overflows = 0;
  if (PyBool_Check(value.ptr()) != 0) return false;
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (index) number = PyLong_AsLongLongAndOverflow(index.ptr(), &overflows);
  PyErr_Clear();
  return bool(index) && overflows == 0;
}

// The checks of whole_number and count_of: in [least, most], of which errors say "< `bound`".
std::int64_t read_count(py::handle value, const Label& label, std::int64_t least, std::int64_t most,
                        const char* bound) {
  long long number = 0;
  int overflows = 0;
  const bool read = read_integer(value, number, overflows);
  if (read && number >= least && number <= most) return number;
  const bool large = overflows > 0 || (read && number > most);
  value_error(label, "expected a whole number >= " + std::to_string(least) +
                         (large ? " and < " + std::string(bound) : "") + ", got " + shown(value));
}

}  // namespace

std::string Label::text() const {
  std::string name = role;
  const py::object given = groups != nullptr && index >= 0 ? name_in(groups, index) : py::object();
  if (given) {
    name += "[" + shown(given) + "]";
  } else if (index >= 0) {
    name += "[" + std::to_string(index) + "]";
  }
  if (key != nullptr) name += "['" + std::string(key) + "']";
  return name;
}

void type_error(const Label& label, const std::string& message) { throw py::type_error(label.text() + ": " + message); }

void value_error(const Label& label, const std::string& message) {
  throw py::value_error(label.text() + ": " + message);
}

std::string kind_text(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

std::string shown(py::handle object) {
  constexpr py::ssize_t kMost = 200;
  const auto whole = py::reinterpret_steal<py::object>(PyObject_Repr(object.ptr()));
  if (!whole) {
    // A number of too many digits, a nest too deep.
    if (!PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_RecursionError)) {
      throw py::error_already_set();
    }
    PyErr_Clear();
    return "an object of type " + kind_text(object);
  }
  if (PyUnicode_GET_LENGTH(whole.ptr()) <= kMost) return py::str(whole);
  return std::string(py::str(py::reinterpret_steal<py::object>(PyUnicode_Substring(whole.ptr(), 0, kMost)))) + "…";
}

bool is_text(py::handle object, const char* text) {
  return PyUnicode_Check(object.ptr()) != 0 && PyUnicode_CompareWithASCIIString(object.ptr(), text) == 0;
}

bool is_sequence(py::handle object) { return PyList_Check(object.ptr()) || PyTuple_Check(object.ptr()); }

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

std::int64_t whole_number(py::handle value, const Label& label, std::int64_t least, std::int64_t below) {
  if (PyLong_CheckExact(value.ptr())) {
    int overflows = 0;
    const long long number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflows);
    if (overflows == 0 && number >= least && number < below) return number;
  }
  return read_count(value, label, least, below - 1, std::to_string(below).c_str());
}

std::int64_t count_of(py::handle value, const char* name) {
  return read_count(value, {name}, 0, std::numeric_limits<std::int64_t>::max(), "2**63");
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

double field_value(const Field& field, py::handle given) {
  if (field.optional && given.is_none()) return NAN;
  if (field.domain == Domain::flag) return flag(given, field.name) ? 1.0 : 0.0;
  if (field.domain == Domain::choice) return choice(field, given);
  const double value = number(given, field.name);
  check_domain(field, value, given);
  return value;
}

}  // namespace fusedstep::bind
