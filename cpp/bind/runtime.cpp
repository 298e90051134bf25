#include <pybind11/stl.h>

#include "bind/module.h"
#include "runtime/isa.h"
#include "runtime/registry.h"
#include "runtime/threads.h"

namespace fusedstep::bind {
namespace py = pybind11;
namespace {

py::dict describe_rules() {
  py::dict all;
  for (const runtime::Rule& rule : runtime::rules()) {
    py::dict hypers;
    const auto names = [&](unsigned bits) {
      py::list some;
      for (std::size_t s = 0; s < rule.states.size(); ++s) {
        if (bits >> s & 1) some.append(rule.states[s]);
      }
      return some;
    };
    py::list variants;
    for (const unsigned keeps : rule.keeps) variants.append(names(keeps));
    for (const Field& field : rule.fields) hypers[field.name] = field.count;
    py::list shapes;
    for (const Shape shape : rule.shapes) {
      shapes.append(shape == Shape::same ? "same" : shape == Shape::rows ? "rows" : "columns");
    }
    all[rule.name] = py::dict(
        py::arg("hypers") = hypers, py::arg("states") = py::cast(rule.states), py::arg("variants") = variants,
        py::arg("shapes") = shapes, py::arg("copies") = names(rule.copies), py::arg("exact") = names(rule.exact),
        py::arg("squares") = names(rule.squares), py::arg("scalars") = py::cast(rule.scalars),
        py::arg("shared_scalars") = rule.shared_scalars, py::arg("cautious") = rule.cautious,
        py::arg("sparse") = rule.sparse, py::arg("dense") = rule.dense, py::arg("native") = rule.native);
  }
  return all;
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

// Called without the GIL, before a region starts its threads; throws where warnings are errors.
void warn_of_shortage(int asked, int granted) {
  const py::gil_scoped_acquire held;
  const std::string message = "num_threads: " + std::to_string(asked) +
                              " threads cannot be started under the limits of this process, " +
                              std::to_string(granted) + " compute";
  if (PyErr_WarnEx(PyExc_RuntimeWarning, message.c_str(), 1) != 0) throw py::error_already_set();
}

}  // namespace

void register_runtime(py::module_& m) {
  m.def("isa", &runtime::active_set);
  m.def("available_isas", &runtime::available_sets);
  m.def("set_isa", &runtime::activate_set);
  m.def("num_threads", &runtime::num_threads);
  m.def("set_num_threads", &runtime::set_num_threads);
  m.def("usable_processors", [] { return runtime::usable_processors(""); });
  runtime::on_shortage(&warn_of_shortage);
  m.def("rules", &describe_rules);
  m.def("compiler", &compiler);
  m.attr("version") = FUSEDSTEP_VERSION;
}

}  // namespace fusedstep::bind
