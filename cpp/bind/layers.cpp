// Softmax cross-entropy.
#include "runtime/layers.h"

#include <pybind11/stl.h>

#include <cstring>
#include <vector>

#include "bind/engine.h"
#include "bind/module.h"
#include "runtime/isa.h"

namespace fusedstep::bind {
namespace {

float* floats(const Array& array) { return reinterpret_cast<float*>(array.data); }

py::object call_reference(const char* function, const py::dict& arguments) {
  return py::module_::import("fusedstep.reference.layers").attr(function)(**arguments);
}

// Gives (mean loss, dlogits).
py::tuple cross_entropy(py::object logits, py::object labels) {
  const Array logits_array = inspect_contiguous_float32(logits, {"logits"}, false);
  const auto shape = logits.attr("shape").cast<std::vector<std::int64_t>>();
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1) {
    value_error({"logits"}, "expected shape (N, C) with at least one row and one class, got " + shape_text(logits));
  }
  if (!is_array(labels) || is_masked(labels) ||
      std::string("iu").find(labels.attr("dtype").attr("kind").cast<char>()) == std::string::npos) {
    type_error({"labels"}, "expected an array of integers, got " +
                               (is_array(labels) ? "dtype " + dtype_text(labels) : kind_text(labels)));
  }
  if (py::len(labels.attr("shape")) != 1 || std::int64_t(py::len(labels)) != shape[0]) {
    value_error({"labels"},
                "expected shape (" + std::to_string(shape[0]) + ",) as logits has rows, got " + shape_text(labels));
  }
  // Copied: what has been checked is what is used, whoever else writes to labels.
  const auto converted = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>(labels);
  std::vector<std::int64_t> classes(static_cast<std::size_t>(shape[0]));
  std::memcpy(classes.data(), converted.data(), classes.size() * sizeof(std::int64_t));
  for (std::size_t row = 0; row < classes.size(); ++row) {
    if (classes[row] < 0 || classes[row] >= shape[1]) {
      value_error({"labels", py::ssize_t(row)}, "expected a class in [0, " + std::to_string(shape[1]) + "), got " +
                                                    std::string(py::str(py::object(labels[py::int_(row)]))));
    }
  }
  py::object dlogits = array_like(logits, "empty_like");
  const double scale = 1.0 / double(shape[0]);
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    const py::object loss = call_reference(
        "cross_entropy",
        py::dict(py::arg("logits") = logits, py::arg("labels") = py::array_t<std::int64_t>(shape[0], classes.data()),
                 py::arg("dlogits") = dlogits));
    return py::make_tuple(loss, dlogits);
  }
  std::vector<double> losses(static_cast<std::size_t>(shape[0]));
  const CrossEntropyArgs args = {
      shape[0],      shape[1], floats(logits_array), classes.data(), floats(inspect(dlogits, {"dlogits"})),
      losses.data(), scale};
  double loss = 0.0;
  {
    const py::gil_scoped_release released;
    loss = runtime::cross_entropy(*table, args);
  }
  return py::make_tuple(loss, dlogits);
}

}  // namespace

void register_layers(py::module_& m) { m.def("softmax_cross_entropy", &cross_entropy); }

}  // namespace fusedstep::bind
