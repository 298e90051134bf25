// What an argument that is no array must be: numbers, flags, counts, choices. Each check stands here, once.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>

#include "rules/rule.h"

namespace fusedstep::bind {

namespace py = pybind11;

// An argument's name, put together only when an error needs it: "grads", "grads[3]", "state[3]['exp_avg']"; and
// "grads['w']" where `groups`, an optimizer's, name the parameter at the index.
struct Label {
  const char* role;
  py::ssize_t index = -1;
  const char* key = nullptr;
  PyObject* groups = nullptr;
  std::string text() const;
};

[[noreturn]] void type_error(const Label& label, const std::string& message);
[[noreturn]] void value_error(const Label& label, const std::string& message);

// What an error shows of an argument: its repr, unless that is long or fails.
std::string shown(py::handle object);
// The name of its type.
std::string kind_text(py::handle object);
// Whether an object is this string.
bool is_text(py::handle object, const char* text);
bool is_sequence(py::handle object);  // a list or a tuple

// dict[key], null where it is missing.
py::handle get(py::handle dict, py::handle key);

// A Python bool or NumPy's; TypeError.
bool flag(py::handle value, const char* name);
// A Python number, no bool; TypeError. Infinite where a double cannot hold it.
double number(py::handle value, const char* name);
// The same where infinity is a value: a number that a double cannot hold is a ValueError.
double number_or_infinity(py::handle value, const char* name);

// Counts stay below this: enough for any run, and exact as a double.
inline constexpr std::int64_t kMaxSteps = std::int64_t{1} << 53;
// A Python integer, or NumPy's, in [least, below); ValueError.
std::int64_t whole_number(py::handle value, const Label& label, std::int64_t least, std::int64_t below = kMaxSteps);
// One in [0, 2^63).
std::int64_t count_of(py::handle value, const char* name);

// A hyper-parameter's value as a double, checked; NaN stands for None. TypeError, ValueError.
double field_value(const Field& field, py::handle given);
// ValueError where a value is outside of the field's domain; `given` is what the error shows.
void check_domain(const Field& field, double value, py::handle given);

}  // namespace fusedstep::bind
