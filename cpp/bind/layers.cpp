// Batch norm and softmax cross-entropy.
#include "runtime/layers.h"

#include <pybind11/stl.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "bind/engine.h"
#include "bind/module.h"
#include "runtime/isa.h"

namespace fusedstep::bind {
namespace {

struct Shape {
  std::int64_t n, c, l;
  bool planes;
};

Shape batch_shape(py::handle x) {
  const auto shape = x.attr("shape").cast<std::vector<std::int64_t>>();
  if (shape.size() != 2 && shape.size() != 4) {
    value_error({"x"}, "expected shape (N, C) or (N, C, H, W), got " + shape_text(x));
  }
  const bool planes = shape.size() == 4;
  const Shape s = {shape[0], shape[1], planes ? shape[2] * shape[3] : 1, planes};
  if (s.n * s.c * s.l == 0) value_error({"x"}, "expected at least one value, got shape " + shape_text(x));
  return s;
}

float* floats(const Array& array) { return reinterpret_cast<float*>(array.data); }

struct Named {
  Array array;
  Label label;
};

// What is written must not overlap anything else that the call was given.
void refuse_overlaps(const std::vector<Named>& written, const std::vector<Named>& read) {
  for (std::size_t k = 0; k < written.size(); ++k) {
    const auto refuse = [&](const Named& other) {
      if (overlap(written[k].array, other.array)) {
        value_error(written[k].label, "overlaps " + other.label.text() + " in memory");
      }
    };
    for (std::size_t other = 0; other < k; ++other) refuse(written[other]);
    for (const Named& other : read) refuse(other);
  }
}

py::object call_reference(const char* function, const py::dict& arguments) {
  return py::module_::import("fusedstep.reference.layers").attr(function)(**arguments);
}

// Gives (y, mean, inv_std), the statistics in float64.
py::tuple batch_norm(py::object x, py::object weight, py::object bias, py::object running_mean, py::object running_var,
                     py::handle training_given, py::handle momentum_given, py::handle eps_given,
                     py::handle unbiased_given, py::object out) {
  const bool training = flag(training_given, "training"), unbiased = flag(unbiased_given, "unbiased");
  const double momentum = number(momentum_given, "momentum"), eps = number(eps_given, "eps");
  const Array x_array = inspect_contiguous_float32(x, {"x"}, false);
  const Shape s = batch_shape(x);
  std::vector<Named> read = {{x_array, {"x"}}}, written;
  BatchNormArgs args = {};
  args.n = s.n;
  args.c = s.c;
  args.l = s.l;
  args.x = floats(x_array);
  const auto vector = [&](py::handle given, const char* name, bool is_written) -> float* {
    if (given.is_none()) return nullptr;
    const Array array = inspect_vector(given, {name}, s.c, is_written);
    (is_written ? written : read).push_back({array, {name}});
    return floats(array);
  };
  args.weight = vector(weight, "weight", false);
  args.bias = vector(bias, "bias", false);
  args.running_mean = vector(running_mean, "running_mean", training);
  args.running_var = vector(running_var, "running_var", training);
  if ((args.running_mean == nullptr) != (args.running_var == nullptr)) {
    throw py::value_error("running_mean, running_var: expected both or neither");
  }
  if (!training && args.running_mean == nullptr) {
    throw py::value_error("running_mean, running_var: expected arrays with training=False, got None");
  }
  if (!(momentum >= 0.0 && momentum <= 1.0)) {
    value_error({"momentum"}, "expected a number in [0, 1], got " + std::string(py::repr(py::float_(momentum))));
  }
  if (!(eps > 0.0 && std::isfinite(eps))) {
    value_error({"eps"}, "expected a finite number > 0, got " + std::string(py::repr(py::float_(eps))));
  }
  if (training && s.n * s.l < 2) {
    value_error({"x"}, "expected more than one value per channel in training, got shape " + shape_text(x));
  }
  const bool given_out = !out.is_none();
  if (given_out) {
    const Array array = inspect_contiguous_float32(out, {"out"}, true);
    require_same_shape(out, {"out"}, x, {"x"});
    written.push_back({array, {"out"}});
  }
  refuse_overlaps(written, read);

  if (!given_out) out = array_like(x, "empty_like");
  py::array_t<double> mean(s.c), inv_std(s.c);
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    call_reference("batch_norm", py::dict(py::arg("x") = x, py::arg("weight") = weight, py::arg("bias") = bias,
                                          py::arg("running_mean") = running_mean, py::arg("running_var") = running_var,
                                          py::arg("training") = training, py::arg("momentum") = momentum,
                                          py::arg("eps") = eps, py::arg("unbiased") = unbiased, py::arg("y") = out,
                                          py::arg("mean") = mean, py::arg("inv_std") = inv_std));
    return py::make_tuple(out, mean, inv_std);
  }
  args.y = floats(inspect(out, {"out"}));
  args.mean = mean.mutable_data();
  args.inv_std = inv_std.mutable_data();
  if (!training) {
    for (std::int64_t c = 0; c < s.c; ++c) {
      args.mean[c] = double(args.running_mean[c]);
      args.inv_std[c] = 1.0 / std::sqrt(double(args.running_var[c]) + eps);
    }
  }
  args.momentum = momentum;
  args.eps = eps;
  args.unbiased = unbiased;
  args.training = training;
  {
    const py::gil_scoped_release released;
    runtime::batch_norm(*table, args, s.planes);
  }
  return py::make_tuple(out, mean, inv_std);
}

using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;

// Gives (dx, dweight, dbias). mean and inv_std are what batch_norm gave.
py::tuple batch_norm_backward(py::object dy, py::object x, py::object weight, Doubles mean, Doubles inv_std,
                              bool training, py::object out) {
  const Array x_array = inspect_contiguous_float32(x, {"saved.x"}, false);
  const Array dy_array = inspect_contiguous_float32(dy, {"dy"}, false);
  require_same_shape(dy, {"dy"}, x, {"saved.x"});
  const Shape s = batch_shape(x);
  std::vector<Named> read = {{x_array, {"saved.x"}}, {dy_array, {"dy"}}};
  const float* weights = nullptr;
  if (!weight.is_none()) {
    read.push_back({inspect_vector(weight, {"saved.weight"}, s.c, false), {"saved.weight"}});
    weights = floats(read.back().array);
  }
  if (mean.size() != s.c || inv_std.size() != s.c) {
    value_error({"saved"}, "expected statistics of " + std::to_string(s.c) + " channels");
  }
  const bool given_out = !out.is_none();
  if (given_out) {
    const Array array = inspect_contiguous_float32(out, {"out"}, true);
    require_same_shape(out, {"out"}, x, {"saved.x"});
    refuse_overlaps({{array, {"out"}}}, read);
  } else {
    out = array_like(x, "empty_like");
  }
  py::array_t<float> dweight(s.c), dbias(s.c);
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    call_reference("batch_norm_backward",
                   py::dict(py::arg("dy") = dy, py::arg("x") = x, py::arg("weight") = weight, py::arg("mean") = mean,
                            py::arg("inv_std") = inv_std, py::arg("training") = training, py::arg("dx") = out,
                            py::arg("dweight") = dweight, py::arg("dbias") = dbias));
    return py::make_tuple(out, dweight, dbias);
  }
  BatchNormBackwardArgs args = {};
  args.n = s.n;
  args.c = s.c;
  args.l = s.l;
  args.x = floats(x_array);
  args.dy = floats(dy_array);
  args.weight = weights;
  args.mean = mean.data();
  args.inv_std = inv_std.data();
  args.dx = floats(inspect(out, {"out"}));
  args.dweight = dweight.mutable_data();
  args.dbias = dbias.mutable_data();
  args.training = training;
  {
    const py::gil_scoped_release released;
    runtime::batch_norm_backward(*table, args, s.planes);
  }
  return py::make_tuple(out, dweight, dbias);
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

void register_layers(py::module_& m) {
  m.def("batch_norm", &batch_norm);
  m.def("batch_norm_backward", &batch_norm_backward);
  m.def("softmax_cross_entropy", &cross_entropy);
}

}  // namespace fusedstep::bind
