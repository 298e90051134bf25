// What a parameter was when an optimizer was given it.
#pragma once

#include <string>
#include <vector>

#include "bind/arrays.h"

namespace fusedstep::bind {

struct Geometry {
  py::handle owner;  // compared, not held: the garbage collector cannot see what a native object holds
  Dtype dtype;
  py::object descr;
  std::vector<py::ssize_t> shape, strides;
  py::tuple lengths() const;
  std::string text() const;
  // ValueError where the array has another shape or dtype now.
  void require_same(py::handle array, const Label& label) const;
  bool same_strides(py::handle array) const;
};
Geometry geometry_of(py::handle owner, py::handle array, const Label& label);

}  // namespace fusedstep::bind
