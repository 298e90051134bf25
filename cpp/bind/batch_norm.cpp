// Batch norm: forward, backward, and the parts of both that workers exchange.
#include "runtime/batch_norm.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "bind/engine.h"
#include "bind/module.h"
#include "runtime/isa.h"

namespace fusedstep::bind {
namespace {

using Doubles = py::array_t<double>;

// The array that is normalized, seen as (n, c, l).
struct Frame {
  py::object array;
  int channel_axis;
  Array memory;
  Layout layout;
  std::int64_t n, c, l;
  int axes;

  std::int64_t count() const { return n * l; }
  bool empty() const { return n * l == 0; }
};

struct Named {
  Array array;
  Label label;
};

std::string text(py::handle value) { return repr_text(value); }
std::string text(double value) { return py::repr(py::float_(value)); }

Frame frame_of(py::object x, py::handle channel_axis_given) {
  const Array memory = inspect_stored(x, {"x"});
  const int axes = axes_of(x);
  if (axes < 2)
    value_error({"x"},
                "expected a batch and a channel axis, such as (N, C) or (N, C, H, W), got shape " + shape_text(x));
  require_dense(x, {"x"});
  if (PyBool_Check(channel_axis_given.ptr()) || !PyIndex_Check(channel_axis_given.ptr())) {
    type_error({"channel_axis"}, "expected an integer, got " + kind_text(channel_axis_given));
  }
  const py::ssize_t given = PyNumber_AsSsize_t(channel_axis_given.ptr(), nullptr);
  if (given == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    type_error({"channel_axis"}, "expected an integer, got " + text(channel_axis_given));
  }
  if (given < -axes || given >= axes) {
    value_error({"channel_axis"},
                "expected an axis of x, which has " + std::to_string(axes) + ", got " + text(channel_axis_given));
  }
  const int axis = int(given < 0 ? given + axes : given);
  ChannelView view = channel_view(x, axis);
  if (view.c == 0) value_error({"x"}, "expected at least one channel, got shape " + shape_text(x));
  // One channel is one run of values.
  if (view.c == 1) view = {view.n * view.l > 0, 1, view.n * view.l};
  return {x, axis, memory, view.l == 1 && view.c > 1 ? kRows : kPlanes, view.n, view.c, view.l, axes};
}

void require_like(py::handle array, const Label& label, const Frame& frame, const Label& frame_label) {
  require_same_dtype(array, label, frame.array, frame_label);
  require_same_shape(array, label, frame.array, frame_label);
  if (!same_layout(array, frame.array)) {
    value_error(label, "expected the memory order of " + frame_label.text() + ", strides " +
                           std::string(py::str(frame.array.attr("strides"))) + ", got " +
                           std::string(py::str(array.attr("strides"))));
  }
}

Array inspect_like(py::handle array, const Label& label, const Frame& frame, const Label& frame_label) {
  const Array memory = inspect_stored(array, label);
  require_like(array, label, frame, frame_label);
  return memory;
}

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

// Parameters and running statistics: (C,), float32, or float64 beside a float64 x.
Array inspect_channels(py::handle object, const Label& label, const Frame& frame, bool written) {
  const Array array = inspect(object, label);
  if (array.dtype == Dtype::float64 && frame.memory.dtype != Dtype::float64) {
    type_error(label, "expected float32, got dtype float64; only a float64 x has float64 parameters and statistics");
  }
  require_contiguous(object, label);
  if (axes_of(object) != 1 || array.size != frame.c) {
    value_error(label, "expected shape (" + std::to_string(frame.c) + ",), got " + shape_text(object));
  }
  if (written) require_writable(object, label);
  return array;
}

// One number a channel, in float32 or float64.
double entry(const Array& array, std::int64_t c) {
  return array.dtype == Dtype::float32 ? double(reinterpret_cast<const float*>(array.data)[c])
                                       : reinterpret_cast<const double*>(array.data)[c];
}
void set_entry(const Array& array, std::int64_t c, double value) {
  if (array.dtype == Dtype::float32) {
    reinterpret_cast<float*>(array.data)[c] = float(value);
  } else {
    reinterpret_cast<double*>(array.data)[c] = value;
  }
}

Doubles widen(const Array& array, std::int64_t c) {
  Doubles values(c);
  for (std::int64_t k = 0; k < c; ++k) values.mutable_data()[k] = entry(array, k);
  return values;
}

// Of some hundred places of an array: tells whether it has been overwritten since.
std::uint64_t fingerprint(const Array& array) {
  constexpr std::int64_t places = 256;
  const std::int64_t item = item_bytes(array.dtype), step = array.size <= places ? 1 : (array.size / places) | 1;
  std::uint64_t hash = 1469598103934665603u;
  for (std::int64_t k = 0; k < array.size; k += step) {
    std::uint64_t word = 0;
    std::memcpy(&word, array.data + k * item, std::size_t(item));
    hash = (hash ^ word) * 1099511628211u;
  }
  return hash;
}

// What the backward pass needs of the forward one.
struct Saved {
  Frame frame;
  std::uint64_t fingerprint;
  bool overwritten;  // x held the output
  bool training;
  bool residual;
  double count;            // values a channel, of all workers
  Doubles mean, inv_std;   // as used
  Doubles scale;           // inv_std * weight
  py::object mask;         // uint16, or None without activation
  bool double_parameters;  // what dweight and dbias are
};

bool takes_relu(py::handle activation) {
  if (activation.is_none()) return false;
  if (!py::isinstance<py::str>(activation)) {
    type_error({"activation"}, "expected 'relu' or None, got " + kind_text(activation));
  }
  if (!is_text(activation, "relu")) {
    value_error({"activation"}, "expected 'relu' or None, got " + text(activation));
  }
  return true;
}

double positive_eps(py::handle given) {
  const double eps = number(given, "eps");
  if (!(eps > 0.0 && std::isfinite(eps))) value_error({"eps"}, "expected a finite number > 0, got " + text(eps));
  return eps;
}

double unit_momentum(py::handle given) {
  if (given.is_none()) {
    type_error({"momentum"}, "expected a number, got None; fs.BatchNorm keeps the cumulative average");
  }
  const double momentum = number(given, "momentum");
  if (!(momentum >= 0.0 && momentum <= 1.0)) {
    value_error({"momentum"}, "expected a number in [0, 1], got " + text(momentum));
  }
  return momentum;
}

std::int64_t words(const Frame& frame) {
  return frame.layout == kRows ? mask_words(frame.n * frame.c) : frame.n * frame.c * mask_words(frame.l);
}

py::object fresh_mask(const Frame& frame) {
  // bits_at reads a word further.
  return py::array_t<std::uint16_t>(words(frame) + 1);
}

py::object reference(const char* function, const py::dict& arguments) {
  return py::module_::import("fusedstep.reference.batch_norm").attr(function)(**arguments);
}

struct Running {
  std::optional<Array> mean, var;
  bool kept() const { return mean.has_value(); }
};

Running inspect_running(const py::object& mean, const py::object& var, const Frame& frame, bool written,
                        std::vector<Named>& list) {
  Running running;
  if (mean.is_none() != var.is_none()) throw py::value_error("running_mean, running_var: expected both or neither");
  if (mean.is_none()) return running;
  running.mean = inspect_channels(mean, {"running_mean"}, frame, written);
  running.var = inspect_channels(var, {"running_var"}, frame, written);
  list.push_back({*running.mean, {"running_mean"}});
  list.push_back({*running.var, {"running_var"}});
  return running;
}

bool all_finite(const double* values, std::int64_t count) {
  for (std::int64_t k = 0; k < count; ++k) {
    if (!std::isfinite(values[k])) return false;
  }
  return true;
}

// running <- (1 - momentum) running + momentum batch; false if the batch was skipped.
bool update_running(const Running& running, std::int64_t channels, double count, const double* mean, const double* m2,
                    double momentum, bool unbiased, bool skip_nonfinite) {
  if (skip_nonfinite && !(all_finite(mean, channels) && all_finite(m2, channels))) return false;
  if (!running.kept()) return true;
  for (std::int64_t c = 0; c < channels; ++c) {
    const double var = m2[c] / (unbiased ? count - 1.0 : count);
    set_entry(*running.mean, c, (1.0 - momentum) * entry(*running.mean, c) + momentum * mean[c]);
    set_entry(*running.var, c, (1.0 - momentum) * entry(*running.var, c) + momentum * var);
  }
  return true;
}

// The inputs of a forward pass that normalizes, whatever the statistics are of.
struct Forward {
  Frame frame;
  py::object weight, bias, residual, out, mask;
  Doubles weights, biases;
  std::vector<Named> read, written;
  double eps;
  bool in_place = false;

  Forward(py::object x, py::handle channel_axis, py::object weight_given, py::object bias_given, py::handle eps_given,
          py::handle activation, py::object residual_given, py::object out_given, bool may_be_in_place)
      : frame(frame_of(x, channel_axis)),
        weight(weight_given),
        bias(bias_given),
        residual(residual_given),
        out(out_given),
        mask(py::none()),
        eps(positive_eps(eps_given)) {
    relu_ = takes_relu(activation);
    read.push_back({frame.memory, {"x"}});
    if (!weight.is_none()) read.push_back({inspect_channels(weight, {"weight"}, frame, false), {"weight"}});
    if (!bias.is_none()) read.push_back({inspect_channels(bias, {"bias"}, frame, false), {"bias"}});
    if (!residual.is_none()) read.push_back({inspect_like(residual, {"residual"}, frame, {"x"}), {"residual"}});
    if (out.is_none()) return;
    const Array memory = inspect_like(out, {"out"}, frame, {"x"});
    require_writable(out, {"out"});
    in_place = may_be_in_place && memory.data == frame.memory.data;
    if (in_place) read.erase(read.begin());
    written.push_back({memory, {"out"}});
  }

  // After all checks.
  void allocate() {
    for (const Named& named : read) {
      if (named.label.role == std::string("weight")) weights = widen(named.array, frame.c);
      if (named.label.role == std::string("bias")) biases = widen(named.array, frame.c);
    }
    if (out.is_none()) out = array_like(frame.array, "empty_like");
    if (relu_) mask = fresh_mask(frame);
  }

  BatchNormArgs args(Doubles& mean, Doubles& inv_std, Doubles& m2, bool folded) const {
    BatchNormArgs a = {};
    a.n = frame.n;
    a.c = frame.c;
    a.l = frame.l;
    a.x = frame.memory.data;
    if (!residual.is_none()) a.residual = inspect_stored(residual, {"residual"}).data;
    a.y = inspect_stored(out, {"out"}).data;
    if (relu_) a.mask = py::array_t<std::uint16_t>(mask).mutable_data();
    if (!weight.is_none()) a.weight = weights.data();
    if (!bias.is_none()) a.bias = biases.data();
    a.mean = mean.mutable_data();
    a.inv_std = inv_std.mutable_data();
    a.m2 = m2.mutable_data();
    a.eps = eps;
    a.folded = folded;
    return a;
  }

  Saved saved(Doubles mean, Doubles inv_std, double count, bool training) const {
    Doubles scale(frame.c);
    for (std::int64_t c = 0; c < frame.c; ++c) {
      scale.mutable_data()[c] = inv_std.data()[c] * (weight.is_none() ? 1.0 : weights.data()[c]);
    }
    bool doubles = frame.memory.dtype == Dtype::float64;
    if (!weight.is_none()) doubles = inspect(weight, {"weight"}).dtype == Dtype::float64;
    return {frame,
            in_place ? 0 : fingerprint(frame.memory),
            in_place,
            training,
            !residual.is_none(),
            count,
            mean,
            inv_std,
            scale,
            mask,
            doubles};
  }

  py::dict for_reference(const Doubles& mean, const Doubles& inv_std) const {
    return py::dict(py::arg("x") = frame.array, py::arg("channel_axis") = frame.channel_axis,
                    py::arg("weight") = weight, py::arg("bias") = bias, py::arg("residual") = residual,
                    py::arg("mean") = mean, py::arg("inv_std") = inv_std, py::arg("y") = out, py::arg("mask") = mask);
  }

 private:
  bool relu_ = false;
};

runtime::BatchNormPlan plan_of(const KernelTable& table, const Frame& frame) {
  return {table, frame.memory.dtype, frame.layout};
}

void require_values(const Frame& frame) {
  if (frame.empty()) value_error({"x"}, "expected at least one value, got shape " + shape_text(frame.array));
}

// Gives (y, saved, whether the running statistics took the batch).
py::tuple batch_norm(py::object x, py::object weight, py::object bias, py::object running_mean, py::object running_var,
                     py::handle training_given, py::handle momentum_given, py::handle eps_given,
                     py::handle channel_axis, py::handle activation, py::object residual, py::handle unbiased_given,
                     py::handle skip_given, py::object out) {
  const bool training = flag(training_given, "training"), unbiased = flag(unbiased_given, "unbiased");
  const bool skip_nonfinite = flag(skip_given, "skip_nonfinite");
  const double momentum = unit_momentum(momentum_given);
  Forward forward(x, channel_axis, weight, bias, eps_given, activation, residual, out, !training);
  const Frame& frame = forward.frame;
  require_values(frame);
  const Running running =
      inspect_running(running_mean, running_var, frame, training, training ? forward.written : forward.read);
  if (!training && !running.kept()) {
    throw py::value_error("running_mean, running_var: expected arrays with training=False, got None");
  }
  if (training && frame.count() < 2) {
    value_error({"x"}, "expected more than one value per channel in training, got shape " + shape_text(x));
  }
  refuse_overlaps(forward.written, forward.read);

  forward.allocate();
  Doubles mean(frame.c), inv_std(frame.c), m2(frame.c);
  if (!training) {
    for (std::int64_t c = 0; c < frame.c; ++c) {
      mean.mutable_data()[c] = entry(*running.mean, c);
      inv_std.mutable_data()[c] = 1.0 / std::sqrt(entry(*running.var, c) + forward.eps);
    }
  }
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    if (training) {
      reference("batch_statistics", py::dict(py::arg("x") = frame.array, py::arg("channel_axis") = frame.channel_axis,
                                             py::arg("eps") = forward.eps, py::arg("mean") = mean,
                                             py::arg("inv_std") = inv_std, py::arg("m2") = m2));
    }
    py::dict arguments = forward.for_reference(mean, inv_std);
    arguments["folded"] = !training;
    reference("normalize", arguments);
  } else {
    const BatchNormArgs args = forward.args(mean, inv_std, m2, !training);
    const py::gil_scoped_release released;
    runtime::batch_norm(plan_of(*table, frame), args, training);
  }
  const bool taken = training && update_running(running, frame.c, double(frame.count()), mean.data(), m2.data(),
                                                momentum, unbiased, skip_nonfinite);
  return py::make_tuple(forward.out, forward.saved(mean, inv_std, double(frame.count()), training), taken);
}

Array inspect_statistics(py::handle object, const Label& label, std::int64_t channels) {
  const Array array = inspect(object, label);
  if (array.dtype != Dtype::float64) type_error(label, "expected float64, got dtype " + dtype_text(object));
  require_contiguous(object, label);
  if (axes_of(object) != 1 || array.size != channels) {
    value_error(label, "expected shape (" + std::to_string(channels) + ",), got " + shape_text(object));
  }
  return array;
}

double require_count(py::handle given, const Label& label) {
  const double count = number(given, label.role);
  if (!(count >= 2.0 && std::isfinite(count) && count == std::floor(count))) {
    value_error(label, "expected more than one value per channel, got " + text(given));
  }
  return count;
}

// With the statistics of all workers.
py::tuple batch_norm_apply(py::object x, py::handle count_given, py::object mean_given, py::object m2_given,
                           py::object weight, py::object bias, py::handle eps, py::handle channel_axis,
                           py::handle activation, py::object residual, py::object out) {
  const double count = require_count(count_given, {"stats.count"});
  Forward forward(x, channel_axis, weight, bias, eps, activation, residual, out, false);
  const Frame& frame = forward.frame;
  const Array mean_of_all = inspect_statistics(mean_given, {"stats.mean"}, frame.c);
  const Array m2_of_all = inspect_statistics(m2_given, {"stats.m2"}, frame.c);
  for (std::int64_t c = 0; c < frame.c; ++c) {
    if (entry(m2_of_all, c) < 0.0) {
      value_error({"stats.m2", c}, "expected a number >= 0, got " + text(entry(m2_of_all, c)));
    }
  }
  forward.read.push_back({mean_of_all, {"stats.mean"}});
  forward.read.push_back({m2_of_all, {"stats.m2"}});
  refuse_overlaps(forward.written, forward.read);

  forward.allocate();
  Doubles mean = widen(mean_of_all, frame.c), inv_std(frame.c), m2(frame.c);
  for (std::int64_t c = 0; c < frame.c; ++c) {
    inv_std.mutable_data()[c] = 1.0 / std::sqrt(entry(m2_of_all, c) / count + forward.eps);
  }
  const KernelTable* table = runtime::active_table();
  if (frame.empty()) return py::make_tuple(forward.out, forward.saved(mean, inv_std, count, true));
  if (table == nullptr) {
    py::dict arguments = forward.for_reference(mean, inv_std);
    arguments["folded"] = false;
    reference("normalize", arguments);
  } else {
    const BatchNormArgs args = forward.args(mean, inv_std, m2, false);
    const py::gil_scoped_release released;
    runtime::batch_norm(plan_of(*table, frame), args, false);
  }
  return py::make_tuple(forward.out, forward.saved(mean, inv_std, count, true));
}

// Gives (count, mean, m2, mean_low, m2_low).
py::tuple batch_norm_stats(py::object x, py::handle channel_axis) {
  const Frame frame = frame_of(x, channel_axis);
  Doubles values[4] = {Doubles(frame.c), Doubles(frame.c), Doubles(frame.c), Doubles(frame.c)};
  Doubles& mean = values[0];
  const KernelTable* table = runtime::active_table();
  if (frame.empty()) {
    for (Doubles& v : values) std::fill_n(v.mutable_data(), frame.c, 0.0);
  } else if (table == nullptr) {
    reference("exact_statistics",
              py::dict(py::arg("x") = frame.array, py::arg("channel_axis") = frame.channel_axis, py::arg("mean") = mean,
                       py::arg("m2") = values[1], py::arg("mean_low") = values[2], py::arg("m2_low") = values[3]));
  } else {
    Doubles inv_std(frame.c);
    BatchNormArgs args = {};
    args.n = frame.n;
    args.c = frame.c;
    args.l = frame.l;
    args.x = frame.memory.data;
    args.mean = mean.mutable_data();
    args.inv_std = inv_std.mutable_data();
    args.m2 = values[1].mutable_data();
    args.mean_low = values[2].mutable_data();
    args.m2_low = values[3].mutable_data();
    args.eps = 1.0;
    const py::gil_scoped_release released;
    runtime::batch_norm_statistics(plan_of(*table, frame), args);
  }
  return py::make_tuple(frame.count(), mean, values[1], values[2], values[3]);
}

// False if the batch was skipped.
bool batch_norm_update(py::object running_mean, py::object running_var, py::handle count_given, py::object mean,
                       py::object m2, py::handle momentum_given, py::handle unbiased_given, py::handle skip_given) {
  const double count = require_count(count_given, {"stats.count"}), momentum = unit_momentum(momentum_given);
  const bool unbiased = flag(unbiased_given, "unbiased"), skip_nonfinite = flag(skip_given, "skip_nonfinite");
  const Array running[2] = {inspect(running_mean, {"running_mean"}), inspect(running_var, {"running_var"})};
  const char* const names[2] = {"running_mean", "running_var"};
  const py::object given[2] = {running_mean, running_var};
  for (int k = 0; k < 2; ++k) {
    require_contiguous(given[k], {names[k]});
    require_writable(given[k], {names[k]});
    if (axes_of(given[k]) != 1 || running[k].size != running[0].size) {
      value_error({names[k]}, "expected shape (C,), got " + shape_text(given[k]));
    }
  }
  const std::int64_t channels = running[0].size;
  const Array mean_of_all = inspect_statistics(mean, {"stats.mean"}, channels);
  const Array m2_of_all = inspect_statistics(m2, {"stats.m2"}, channels);
  refuse_overlaps({{running[0], {"running_mean"}}, {running[1], {"running_var"}}},
                  {{mean_of_all, {"stats.mean"}}, {m2_of_all, {"stats.m2"}}});
  return update_running({running[0], running[1]}, channels, count, reinterpret_cast<const double*>(mean_of_all.data),
                        reinterpret_cast<const double*>(m2_of_all.data), momentum, unbiased, skip_nonfinite);
}

// A gradient that fits what was saved.
Array inspect_gradient(py::object dy, const Saved& saved) {
  const Array memory = inspect_like(dy, {"dy"}, saved.frame, {"saved.x"});
  if (saved.overwritten) throw py::value_error("saved: x was overwritten by the forward pass, out=x");
  const auto now = inspect_stored(saved.frame.array, {"saved.x"});
  if (now.data != saved.frame.memory.data || now.size != saved.frame.memory.size ||
      now.dtype != saved.frame.memory.dtype || axes_of(saved.frame.array) != saved.frame.axes ||
      fingerprint(now) != saved.fingerprint) {
    throw py::value_error("saved: x has been changed since the forward pass");
  }
  return memory;
}

struct Backward {
  const Saved& saved;
  Array dy_memory;
  py::object dy, dx, dresidual;
  std::vector<Named> read, written;

  Backward(py::object dy_given, const Saved& saved_given, py::object out, py::object residual_out)
      : saved(saved_given),
        dy_memory(inspect_gradient(dy_given, saved)),
        dy(dy_given),
        dx(out),
        dresidual(residual_out) {
    read = {{saved.frame.memory, {"saved.x"}}, {dy_memory, {"dy"}}};
    if (!saved.mask.is_none()) {
      const py::array_t<std::uint16_t> mask(saved.mask);
      const auto bytes = std::int64_t(mask.nbytes());
      read.push_back({{reinterpret_cast<char*>(const_cast<std::uint16_t*>(mask.data())), bytes, bytes, Dtype::float32},
                      {"saved.mask"}});
    }
    if (!dx.is_none()) {
      written.push_back({inspect_like(dx, {"out"}, saved.frame, {"saved.x"}), {"out"}});
      require_writable(dx, {"out"});
    }
    if (!dresidual.is_none()) {
      if (!masked_residual()) {
        value_error({"residual_out"},
                    "expected None: the residual's gradient is dy itself unless an activation follows it");
      }
      written.push_back({inspect_like(dresidual, {"residual_out"}, saved.frame, {"saved.x"}), {"residual_out"}});
      require_writable(dresidual, {"residual_out"});
    }
    refuse_overlaps(written, read);
  }

  bool masked_residual() const { return saved.residual && !saved.mask.is_none(); }

  void allocate() {
    if (dx.is_none()) dx = array_like(saved.frame.array, "empty_like");
    if (dresidual.is_none() && masked_residual()) dresidual = array_like(saved.frame.array, "empty_like");
  }

  BatchNormGradientArgs args(Doubles& sum_dy, Doubles& sum_dy_d) const {
    BatchNormGradientArgs a = {};
    const Frame& frame = saved.frame;
    a.n = frame.n;
    a.c = frame.c;
    a.l = frame.l;
    a.x = frame.memory.data;
    a.dy = dy_memory.data;
    if (!saved.mask.is_none()) a.mask = py::array_t<std::uint16_t>(saved.mask).data();
    a.scale = saved.scale.data();
    a.mean = saved.mean.data();
    a.inv_std = saved.inv_std.data();
    a.sum_dy = sum_dy.mutable_data();
    a.sum_dy_d = sum_dy_d.mutable_data();
    if (!dx.is_none()) a.dx = inspect_stored(dx, {"out"}).data;
    if (!dresidual.is_none()) a.dresidual = inspect_stored(dresidual, {"residual_out"}).data;
    a.count = saved.count;
    a.training = saved.training;
    return a;
  }

  void sums_by_reference(const Doubles& sum_dy, const Doubles& sum_dy_d) const {
    reference("gradient_sums",
              py::dict(py::arg("dy") = dy, py::arg("x") = saved.frame.array,
                       py::arg("channel_axis") = saved.frame.channel_axis, py::arg("mask") = saved.mask,
                       py::arg("mean") = saved.mean, py::arg("sum_dy") = sum_dy, py::arg("sum_dy_d") = sum_dy_d));
  }
  void gradient_by_reference(const Doubles& sum_dy, const Doubles& sum_dy_d) const {
    reference("gradient",
              py::dict(py::arg("dy") = dy, py::arg("x") = saved.frame.array,
                       py::arg("channel_axis") = saved.frame.channel_axis, py::arg("mask") = saved.mask,
                       py::arg("scale") = saved.scale, py::arg("mean") = saved.mean, py::arg("inv_std") = saved.inv_std,
                       py::arg("sum_dy") = sum_dy, py::arg("sum_dy_d") = sum_dy_d, py::arg("count") = saved.count,
                       py::arg("training") = saved.training, py::arg("dx") = dx, py::arg("dresidual") = dresidual));
  }

  // (dx, dweight, dbias), and dresidual where there was a residual.
  py::tuple result(const Doubles& sum_dy, const Doubles& sum_dy_d) const {
    py::object gradients[2];
    for (int k = 0; k < 2; ++k) {
      const auto values = [&](std::int64_t c) {
        return k == 0 ? saved.inv_std.data()[c] * sum_dy_d.data()[c] : sum_dy.data()[c];
      };
      if (saved.double_parameters) {
        Doubles array(saved.frame.c);
        for (std::int64_t c = 0; c < saved.frame.c; ++c) array.mutable_data()[c] = values(c);
        gradients[k] = array;
      } else {
        py::array_t<float> array(saved.frame.c);
        for (std::int64_t c = 0; c < saved.frame.c; ++c) array.mutable_data()[c] = float(values(c));
        gradients[k] = array;
      }
    }
    if (!saved.residual) return py::make_tuple(dx, gradients[0], gradients[1]);
    return py::make_tuple(dx, gradients[0], gradients[1], masked_residual() ? dresidual : dy);
  }
};

void clear(Doubles& a, Doubles& b) {
  std::fill_n(a.mutable_data(), a.size(), 0.0);
  std::fill_n(b.mutable_data(), b.size(), 0.0);
}

py::tuple batch_norm_backward(py::object dy, const Saved& saved, py::object out, py::object residual_out) {
  Backward backward(dy, saved, out, residual_out);
  if (saved.training && saved.count != double(saved.frame.count())) {
    throw py::value_error(
        "saved: has the statistics of other workers too; expected batch_norm_backward_sums, merge_grad_sums and "
        "batch_norm_backward_apply");
  }
  backward.allocate();
  Doubles sum_dy(saved.frame.c), sum_dy_d(saved.frame.c);
  const KernelTable* table = runtime::active_table();
  if (saved.frame.empty()) {
    clear(sum_dy, sum_dy_d);
  } else if (table == nullptr) {
    backward.sums_by_reference(sum_dy, sum_dy_d);
    backward.gradient_by_reference(sum_dy, sum_dy_d);
  } else {
    const BatchNormGradientArgs args = backward.args(sum_dy, sum_dy_d);
    const py::gil_scoped_release released;
    runtime::batch_norm_backward(plan_of(*table, saved.frame), args);
  }
  return backward.result(sum_dy, sum_dy_d);
}

// Gives (sum dy, sum dy (x - mean)) of this worker's values.
py::tuple batch_norm_backward_sums(py::object dy, const Saved& saved) {
  const Backward backward(dy, saved, py::none(), py::none());
  Doubles sum_dy(saved.frame.c), sum_dy_d(saved.frame.c);
  const KernelTable* table = runtime::active_table();
  if (saved.frame.empty()) {
    clear(sum_dy, sum_dy_d);
  } else if (table == nullptr) {
    backward.sums_by_reference(sum_dy, sum_dy_d);
  } else {
    const BatchNormGradientArgs args = backward.args(sum_dy, sum_dy_d);
    const py::gil_scoped_release released;
    runtime::batch_norm_gradient_sums(plan_of(*table, saved.frame), args);
  }
  return py::make_tuple(sum_dy, sum_dy_d);
}

// With the sums of all workers.
py::tuple batch_norm_backward_apply(py::object dy, const Saved& saved, py::object sum_dy_given,
                                    py::object sum_dy_d_given, py::object out, py::object residual_out) {
  Backward backward(dy, saved, out, residual_out);
  const Array sums[2] = {inspect_statistics(sum_dy_given, {"sums.dy"}, saved.frame.c),
                         inspect_statistics(sum_dy_d_given, {"sums.dy_d"}, saved.frame.c)};
  refuse_overlaps(backward.written, {{sums[0], {"sums.dy"}}, {sums[1], {"sums.dy_d"}}});
  backward.allocate();
  Doubles sum_dy = widen(sums[0], saved.frame.c), sum_dy_d = widen(sums[1], saved.frame.c);
  const KernelTable* table = runtime::active_table();
  if (saved.frame.empty()) return backward.result(sum_dy, sum_dy_d);
  if (table == nullptr) {
    backward.gradient_by_reference(sum_dy, sum_dy_d);
  } else {
    const BatchNormGradientArgs args = backward.args(sum_dy, sum_dy_d);
    const py::gil_scoped_release released;
    runtime::batch_norm_gradient(plan_of(*table, saved.frame), args);
  }
  return backward.result(sum_dy, sum_dy_d);
}

}  // namespace

void register_batch_norm(py::module_& m) {
  py::class_<Saved>(m, "BatchNormSaved",
                    "What `batch_norm_backward` needs of the forward pass. `x` is the caller's array, not a copy.")
      .def_property_readonly(
          "x", [](const Saved& s) { return s.frame.array; }, "The array that was normalized.")
      .def_property_readonly(
          "mean", [](const Saved& s) { return s.mean; }, "(C,) float64, the mean that was used.")
      .def_property_readonly(
          "inv_std", [](const Saved& s) { return s.inv_std; }, "(C,) float64, 1 / √(var + eps).")
      .def_property_readonly(
          "mask", [](const Saved& s) { return s.mask; }, "Bits of what relu let pass, or None.")
      .def_property_readonly(
          "count", [](const Saved& s) { return std::int64_t(s.count); }, "Values per channel behind the statistics.")
      .def_property_readonly(
          "training", [](const Saved& s) { return s.training; }, "Whether the statistics were the batch's.");
  m.def("batch_norm", &batch_norm);
  m.def("batch_norm_apply", &batch_norm_apply);
  m.def("batch_norm_stats", &batch_norm_stats);
  m.def("batch_norm_update", &batch_norm_update);
  m.def("batch_norm_backward", &batch_norm_backward, py::arg("dy"), py::arg("saved"), py::arg("out"),
        py::arg("residual_out"));
  m.def("batch_norm_backward_sums", &batch_norm_backward_sums);
  m.def("batch_norm_backward_apply", &batch_norm_backward_apply);
}

}  // namespace fusedstep::bind
