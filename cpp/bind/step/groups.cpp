#include "bind/step/groups.h"

namespace fusedstep::bind {
namespace {

// A key that nothing reads would be ignored. Where there are as many keys as were found, all are known.
void refuse_unknown(const runtime::Rule& rule, py::handle group, py::ssize_t index, py::ssize_t found,
                    const std::vector<py::object>& scalar_names) {
  if (PyDict_GET_SIZE(group.ptr()) == found) return;
  if (rule.shared_scalars) {
    for (const py::object& name : scalar_names) found += get(group, name) ? 1 : 0;
  }
  if (PyDict_Size(group.ptr()) == found) return;
  py::module_::import("fusedstep.optimizers.base").attr("refuse_unknown")(rule.name, group, index);
}

// Whether a plain list or dict still holds these objects, under these names and in this order.
bool holds_same(py::handle container, py::handle objects, py::handle names) {
  const py::ssize_t count = PyList_GET_SIZE(objects.ptr());
  if (PyList_Check(container.ptr())) {
    bool same = PyList_GET_SIZE(container.ptr()) == count;
    for (py::ssize_t k = 0; same && k < count; ++k) {
      same = PyList_GET_ITEM(container.ptr(), k) == PyList_GET_ITEM(objects.ptr(), k);
    }
    return same;
  }
  if (!PyDict_Check(container.ptr()) || PyDict_GET_SIZE(container.ptr()) != count) return false;
  PyObject *name, *value;
  py::ssize_t place = 0;
  for (py::ssize_t k = 0; PyDict_Next(container.ptr(), &place, &name, &value) != 0; ++k) {
    if (name != PyList_GET_ITEM(names.ptr(), k) || value != PyList_GET_ITEM(objects.ptr(), k)) return false;
  }
  return true;
}

}  // namespace

void read_groups(const Engine& engine, const py::list& groups, Schedules schedules, std::int64_t taken,
                 const std::vector<double>& last_lrs, const std::vector<py::object>& scalar_names,
                 std::vector<Settings>& settings) {
  settings.clear();
  for (py::ssize_t g = 0; g < PyList_GET_SIZE(groups.ptr()); ++g) {
    const auto group = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(groups.ptr(), g));
    if (!PyDict_Check(group.ptr())) type_error({"param_groups", g}, "expected a dict, got " + kind_text(group));
    const double last = std::size_t(g) < last_lrs.size() ? last_lrs[std::size_t(g)] : NAN;
    settings.push_back(engine.read(group, schedules, taken, last));
    refuse_unknown(engine.rule(), group, g, settings.back().keys, scalar_names);
    if (g > 0) require_agreement(engine.rule(), settings[0], settings.back());
  }
}

void check_groups(const py::list& groups, const std::vector<Settings>& settings) {
  if (settings.empty() || PyList_GET_SIZE(groups.ptr()) != py::ssize_t(settings.size())) {
    value_error({"param_groups"}, "expected at least one group, and as many after a schedule is asked as before");
  }
  for (py::ssize_t g = 0; g < PyList_GET_SIZE(groups.ptr()); ++g) {
    const py::handle params = settings[std::size_t(g)].params, names = settings[std::size_t(g)].param_names;
    if (!params || !PyList_Check(params.ptr())) type_error({"param_groups", g, "params"}, "expected a list");
    if (!names) continue;
    if (!PyList_Check(names.ptr())) type_error({"param_groups", g, "param_names"}, "expected a list");
    const py::ssize_t expected = PyList_GET_SIZE(params.ptr()), got = PyList_GET_SIZE(names.ptr());
    if (got != expected) {
      value_error({"param_groups", g, "param_names"},
                  "expected " + std::to_string(expected) + " names, one per parameter, got " + std::to_string(got));
    }
  }
}

void check_containers(const py::list& given, std::size_t groups) {
  if (given.size() != groups) {
    value_error({"param_groups"}, "expected " + std::to_string(given.size()) + ", which add_param_group adds to, got " +
                                      std::to_string(groups));
  }
  for (const py::handle one : given) {
    const py::handle objects = PyTuple_GET_ITEM(one.ptr(), 0), names = PyTuple_GET_ITEM(one.ptr(), 1);
    const py::handle container = PyTuple_GET_ITEM(one.ptr(), 2);
    if (container.is_none() || holds_same(container, objects, names)) continue;
    // Looks again, at what is no plain list or dict, or in another order, and says what is different.
    py::module_::import("fusedstep._common.structure").attr("refuse_orphans")(one);
  }
}

}  // namespace fusedstep::bind
