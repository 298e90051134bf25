#include "bind/step/gradients.h"

#include "bind/arrays.h"
#include "bind/step/groups.h"

namespace fusedstep::bind {
namespace {

// A list, a dict, or a tree of these, that the parameters of a group came in; None where there is nothing to look at.
py::handle container_of(const py::list& given, py::ssize_t group) {
  return PyTuple_GET_ITEM(PyList_GET_ITEM(given.ptr(), group), 2);
}

bool is_tree(py::handle container) {
  return !container.is_none() && !PyDict_Check(container.ptr()) && !PyList_Check(container.ptr());
}

// An iterator, or a view of a dict; no array.
bool is_iterable(py::handle grads) {
  if (is_sequence(grads) || PyDict_Check(grads.ptr()) || is_array(grads) || PyUnicode_Check(grads.ptr())) return false;
  return py::hasattr(grads, "__iter__") && !py::hasattr(grads, "__array__") && !py::hasattr(grads, "keys");
}

// Whether gradients come group by group, rather than all in one list.
bool is_by_group(py::handle grads, const std::vector<Settings>& groups) {
  if (!is_sequence(grads) || PySequence_Fast_GET_SIZE(grads.ptr()) != py::ssize_t(groups.size())) return false;
  for (const py::handle part : grads) {
    if (is_sequence(part) || PyDict_Check(part.ptr())) return true;
  }
  return false;
}

}  // namespace

void Gradients::clear() {
  grads_.clear();
  lists_.clear();
}

void Gradients::read(Structure structure, py::handle grads, const std::vector<Settings>& groups,
                     const py::list& given) {
  clear();
  if (structure == Structure::array) {
    grads_.push_back(grads);
    return;
  }
  if (is_iterable(grads)) grads = listed(grads, py::none());
  if (structure == Structure::groups) return append_groups(grads, groups, given);
  const Settings& group = groups[0];
  const py::handle container = container_of(given, 0);
  const bool by_name = PyDict_Check(grads.ptr()) && group.param_names;
  if (is_tree(container)) {
    append_list(listed(grads, container), params_in(group));
  } else if (structure == Structure::dict || by_name) {
    append_dict(grads, group.param_names);
  } else {
    append_list(grads, params_in(group));
  }
}

void Gradients::append_list(py::handle grads, py::ssize_t expected) {
  if (!is_sequence(grads)) {
    type_error({"grads"}, "expected a list of " + std::to_string(expected) + " arrays, got " + kind_text(grads));
  }
  const py::ssize_t got = PySequence_Fast_GET_SIZE(grads.ptr());
  if (got != expected) {
    value_error({"grads"}, "expected " + std::to_string(expected) +
                               " arrays (one per parameter, None to leave one out), got " + std::to_string(got));
  }
  for (py::ssize_t k = 0; k < got; ++k) grads_.push_back(PySequence_Fast_GET_ITEM(grads.ptr(), k));
}

void Gradients::append_dict(py::handle grads, py::handle names) {
  if (!PyDict_Check(grads.ptr())) {
    type_error({"grads"}, "expected a dict with the parameters' names, got " + kind_text(grads));
  }
  for (const py::handle name : names) {
    const py::handle grad = get(grads, name);
    if (!grad) value_error({"grads"}, "no gradient for " + shown(name) + " (give None to leave it out)");
    grads_.push_back(grad);
  }
  if (PyDict_Size(grads.ptr()) == PyObject_Length(names.ptr())) return;
  for (const auto& item : py::reinterpret_borrow<py::dict>(grads)) {
    if (PySequence_Contains(names.ptr(), item.first.ptr()) == 0) {
      value_error({"grads"}, shown(item.first) + " is not the name of a parameter");
    }
  }
}

// One group's gradients, in the form that its parameters were given in.
void Gradients::append_group(py::handle grads, const Settings& group, py::handle container) {
  if (is_tree(container)) grads = listed(grads, container);
  if (PyDict_Check(grads.ptr()) && group.param_names) return append_dict(grads, group.param_names);
  const py::ssize_t expected = params_in(group);
  if (expected == 1 && !is_sequence(grads)) {
    grads_.push_back(grads);
  } else {
    append_list(grads, expected);
  }
}

void Gradients::append_groups(py::handle grads, const std::vector<Settings>& groups, const py::list& given) {
  if (is_by_group(grads, groups)) {
    for (py::ssize_t g = 0; g < py::ssize_t(groups.size()); ++g) {
      append_group(PySequence_Fast_GET_ITEM(grads.ptr(), g), groups[std::size_t(g)], container_of(given, g));
    }
    return;
  }
  py::ssize_t all = 0;
  for (const Settings& group : groups) all += params_in(group);
  append_list(grads, all);
}

// Gradients in the structure of a tree, or of an iterator: as a list, which is held.
py::handle Gradients::listed(py::handle grads, py::handle container) {
  static const py::handle structure = py::module_::import("fusedstep._common.structure").release();
  lists_.push_back(structure.attr("flat_grads")(grads, container));
  return lists_.back();
}

}  // namespace fusedstep::bind
