// The array that batch norm works on.
#pragma once

#include <vector>

#include "bind/arrays.h"

namespace fusedstep::bind {

// The lengths of all axes, and the strides of those with more than one entry.
struct AxisLayout {
  std::vector<std::int64_t> shape, strides;
  bool operator==(const AxisLayout&) const = default;
};
AxisLayout axis_layout(py::handle array);

// An array with a channel axis, seen as (n, c, l) in the order of its memory.
struct BatchView {
  py::object given;  // the caller's object
  py::object array;  // its memory as a NumPy array
  int channel_axis;
  Array memory;
  Layout layout;
  std::int64_t n, c, l;
  AxisLayout axes;  // when it was viewed

  std::int64_t count() const { return n * l; }  // values of a channel
  bool empty() const { return n * l == 0; }
};

// Looks at an array of another library anew. That may run code of others: it comes before any pointer is taken.
py::object memory_of(const py::object& given, const char* name);
// The number of an axis, negative ones from the end. TypeError, ValueError.
py::ssize_t axis_number(py::handle given);
// TypeError, ValueError: x is no dense array of a dtype that is known, with a batch and this channel axis.
BatchView view_batch(const py::object& x, py::ssize_t channel_axis);
void require_values(const BatchView& x);

}  // namespace fusedstep::bind
