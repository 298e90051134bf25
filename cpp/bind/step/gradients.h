// The gradients of a step, in the order of the parameters, whatever structure they come in.
#pragma once

#include <vector>

#include "bind/step/settings.h"

namespace fusedstep::bind {

// How the parameters were given: the gradients come the same way.
enum class Structure { array, list, dict, groups };

class Gradients {
 public:
  // `groups`, as they were read; `given`, per group, its parameters as they were given (_common.structure.Given).
  // Borrows the gradients. TypeError, ValueError. No code of Python's runs for arrays, and lists and dicts of arrays.
  void read(Structure structure, py::handle grads, const std::vector<Settings>& groups, const py::list& given);
  void clear();
  std::size_t size() const { return grads_.size(); }
  py::handle operator[](py::ssize_t place) const { return grads_[std::size_t(place)]; }

 private:
  void append_list(py::handle grads, py::ssize_t expected);
  void append_dict(py::handle grads, py::handle names);
  void append_group(py::handle grads, const Settings& group, py::handle container);
  void append_groups(py::handle grads, const std::vector<Settings>& groups, const py::list& given);
  py::handle listed(py::handle grads, py::handle container);

  std::vector<py::handle> grads_;
  std::vector<py::object> lists_;  // that grads_ points into
};

}  // namespace fusedstep::bind
