// Batch norm: forward, backward, and the parts of both that workers exchange.
#include "runtime/batch_norm.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "bind/engine.h"
#include "bind/module.h"
#include "runtime/isa.h"

namespace fusedstep::bind {
namespace {

using Doubles = py::array_t<double>;
// A number a channel.
using Channels = std::vector<double>;

// What the reference sees of memory that is ours, while it is called.
Doubles seen(Channels& values) { return Doubles(py::ssize_t(values.size()), values.data(), py::none()); }

// The lengths of axes, and the strides of those that have more than one entry.
struct Geometry {
  std::vector<std::int64_t> shape, strides;
  bool operator==(const Geometry&) const = default;
};

Geometry geometry_of(py::handle array) {
  Geometry geometry = {shape_of(array), strides_of(array)};
  for (std::size_t k = 0; k < geometry.shape.size(); ++k) {
    if (geometry.shape[k] == 1) geometry.strides[k] = 0;
  }
  return geometry;
}

// The array that is normalized, seen as (n, c, l).
struct Frame {
  py::object given;  // the caller's
  py::object array;  // what it is in NumPy
  int channel_axis;
  Array memory;
  Layout layout;
  std::int64_t n, c, l;
  Geometry geometry;  // at the time of the forward pass

  std::int64_t count() const { return n * l; }
  bool empty() const { return n * l == 0; }
};

struct Named {
  Array array;
  Label label;
};

std::string text(py::handle value) { return shown(value); }
std::string text(double value) { return py::repr(py::float_(value)); }

// An array of another library is looked at anew; that runs code of others, and comes before any pointer is taken.
py::object viewed(const py::object& given, const char* name) {
  if (is_array(given) || !(py::hasattr(given, "__array__") || py::hasattr(given, "__dlpack__"))) return given;
  static const py::handle arrays = py::module_::import("fusedstep._common.arrays").release();
  return arrays.attr("as_array")(given, name);
}

py::ssize_t axis_number(py::handle given) {
  if (PyBool_Check(given.ptr()) || !PyIndex_Check(given.ptr())) {
    type_error({"channel_axis"}, "expected an integer, got " + kind_text(given));
  }
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(given.ptr()));
  const py::ssize_t number = index ? PyLong_AsSsize_t(index.ptr()) : -1;
  if (number == -1 && PyErr_Occurred() != nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) throw py::error_already_set();
    PyErr_Clear();
    if (index) value_error({"channel_axis"}, "expected an axis of x, got " + text(given));
    type_error({"channel_axis"}, "expected an integer, got " + text(given));
  }
  return number;
}

Frame frame_of(const py::object& given, py::ssize_t axis_given) {
  const py::object seen = viewed(given, "x");
  const Array memory = inspect_stored(seen, {"x"});
  const py::object x = plain(seen);
  const int axes = axes_of(x);
  if (axes < 2)
    value_error({"x"},
                "expected a batch and a channel axis, such as (N, C) or (N, C, H, W), got shape " + shape_text(x));
  require_dense(x, {"x"});
  if (axis_given < -axes || axis_given >= axes) {
    value_error({"channel_axis"},
                "expected an axis of x, which has " + std::to_string(axes) + ", got " + std::to_string(axis_given));
  }
  const int axis = int(axis_given < 0 ? axis_given + axes : axis_given);
  ChannelView view = channel_view(x, axis);
  if (view.c == 0) value_error({"x"}, "expected at least one channel, got shape " + shape_text(x));
  // One channel is one run of values.
  if (view.c == 1) view = {view.n * view.l > 0, 1, view.n * view.l};
  return {given, x, axis, memory, view.l == 1 && view.c > 1 ? kRows : kPlanes, view.n, view.c, view.l, geometry_of(x)};
}

void require_like(py::handle array, const Label& label, const Frame& frame, const Label& frame_label) {
  require_same_dtype(array, label, frame.array, frame_label);
  require_same_shape(array, label, frame.array, frame_label);
  if (!same_layout(array, frame.array)) {
    value_error(label, "expected the memory order of " + frame_label.text() + ", strides " + strides_text(frame.array) +
                           ", got " + strides_text(array));
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

Channels widen(const Array& array, std::int64_t c) {
  Channels values(static_cast<std::size_t>(c));
  for (std::int64_t k = 0; k < c; ++k) values[std::size_t(k)] = entry(array, k);
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
  double count;                           // values a channel, of all workers
  Channels mean, inv_std;                 // as used
  Channels scale;                         // inv_std * weight
  std::shared_ptr<std::uint16_t[]> mask;  // null without activation
  std::int64_t mask_words;
  bool double_parameters;  // what dweight and dbias are

  py::object mask_array() const {
    if (mask == nullptr) return py::none();
    return py::array_t<std::uint16_t>(mask_words, mask.get(), py::none());
  }
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

// 1 / sqrt(eps), what a constant channel is multiplied by, must be a number of the arithmetic: 0 times infinity is
// none. In double its square is taken too.
void require_eps_for(double eps, Dtype dtype) {
  const bool wide = maths_dtype(dtype) == Dtype::float64;
  const double least = wide ? 0x1p-1020 : 0x1p-254;
  if (eps >= least) return;
  value_error({"eps"}, std::string("expected a number >= ") + (wide ? "9e-308" : "3.5e-77") + " in the arithmetic of " +
                           dtype_name(maths_dtype(dtype)) + ", got " + text(eps));
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

// Parameters, without their subclass once they have been inspected.
py::object plain_if(const py::object& object) {
  return is_array(object) && !is_masked(object) ? plain(object) : object;
}

// What is given beside arrays. It is read before them, for what is no number of Python's own may be code of others.
struct Choices {
  double eps;
  py::ssize_t channel_axis;
  bool relu;

  Choices(py::handle eps_given, py::handle channel_axis_given, py::handle activation)
      : eps(positive_eps(eps_given)), channel_axis(axis_number(channel_axis_given)), relu(takes_relu(activation)) {}
};

// The inputs of a forward pass that normalizes, whatever the statistics are of.
struct Forward {
  Frame frame;
  py::object weight, bias, residual, out;
  Channels weights, biases;
  std::vector<Named> read, written;
  double eps;
  bool in_place = false;

  Forward(const py::object& x, const Choices& choices, py::object weight_given, py::object bias_given,
          py::object residual_given, py::object out_given, bool may_be_in_place)
      : frame(frame_of(x, choices.channel_axis)),
        weight(plain_if(weight_given)),
        bias(plain_if(bias_given)),
        residual(residual_given),
        out(out_given),
        eps(choices.eps),
        relu_(choices.relu) {
    require_eps_for(eps, frame.memory.dtype);
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

  // After all checks: memory for all that comes out, so that nothing fails once the first of it is written.
  py::object start(double count, bool training) {
    for (const Named& named : read) {
      if (named.label.role == std::string("weight")) weights = widen(named.array, frame.c);
      if (named.label.role == std::string("bias")) biases = widen(named.array, frame.c);
    }
    if (out.is_none()) out = array_like(frame.array, "empty_like");
    bool doubles = frame.memory.dtype == Dtype::float64;
    if (!weight.is_none()) doubles = inspect(weight, {"weight"}).dtype == Dtype::float64;
    const auto channels = static_cast<std::size_t>(frame.c);
    Saved made = {frame,
                  in_place ? 0 : fingerprint(frame.memory),
                  in_place,
                  training,
                  !residual.is_none(),
                  count,
                  Channels(channels),
                  Channels(channels),
                  Channels(channels),
                  nullptr,
                  0,
                  doubles};
    if (relu_) {
      made.mask_words = words(frame) + 1;  // bits_at reads a word further
      made.mask.reset(new std::uint16_t[std::size_t(made.mask_words)]);
      made.mask[std::size_t(made.mask_words - 1)] = 0;
    }
    py::object object = py::cast(std::move(made));
    saved = object.cast<Saved*>();
    m2.resize(channels);
    return object;
  }

  BatchNormArgs args(bool folded) {
    BatchNormArgs a = {};
    a.n = frame.n;
    a.c = frame.c;
    a.l = frame.l;
    a.x = frame.memory.data;
    if (!residual.is_none()) a.residual = inspect_stored(residual, {"residual"}).data;
    a.y = inspect_stored(out, {"out"}).data;
    a.mask = saved->mask.get();
    if (!weight.is_none()) a.weight = weights.data();
    if (!bias.is_none()) a.bias = biases.data();
    a.mean = saved->mean.data();
    a.inv_std = saved->inv_std.data();
    a.m2 = m2.data();
    a.eps = eps;
    a.folded = folded;
    return a;
  }

  void normalize_by_reference(bool folded) {
    reference("normalize",
              py::dict(py::arg("x") = frame.array, py::arg("channel_axis") = frame.channel_axis,
                       py::arg("weight") = weight, py::arg("bias") = bias, py::arg("residual") = plain_if(residual),
                       py::arg("mean") = seen(saved->mean), py::arg("inv_std") = seen(saved->inv_std),
                       py::arg("y") = plain(out), py::arg("mask") = saved->mask_array(), py::arg("folded") = folded));
  }

  void finish() {
    for (std::size_t c = 0; c < saved->scale.size(); ++c) {
      saved->scale[c] = saved->inv_std[c] * (weight.is_none() ? 1.0 : weights[c]);
    }
  }

  Saved* saved = nullptr;
  Channels m2;

 private:
  bool relu_;
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
  const Choices choices(eps_given, channel_axis, activation);
  Forward forward(x, choices, weight, bias, residual, out, !training);
  const Frame& frame = forward.frame;
  require_values(frame);
  const Running running =
      inspect_running(running_mean, running_var, frame, training, training ? forward.written : forward.read);
  if (!training && !running.kept()) {
    throw py::value_error("running_mean, running_var: expected arrays with training=False, got None");
  }
  if (training && frame.count() < 2) {
    value_error({"x"}, "expected more than one value per channel in training, got shape " + shape_text(frame.array));
  }
  if (!training) {
    for (std::int64_t c = 0; c < frame.c; ++c) {
      const double var = entry(*running.var, c);
      if (var < 0.0) value_error({"running_var", c}, "expected a number >= 0, got " + text(var));
    }
  }
  refuse_overlaps(forward.written, forward.read);

  const py::object saved = forward.start(double(frame.count()), training);
  const py::object whether[2] = {py::bool_(false), py::bool_(true)};
  py::tuple results[2] = {py::make_tuple(forward.out, saved, whether[0]),
                          py::make_tuple(forward.out, saved, whether[1])};
  if (!training) {
    for (std::int64_t c = 0; c < frame.c; ++c) {
      forward.saved->mean[std::size_t(c)] = entry(*running.mean, c);
      forward.saved->inv_std[std::size_t(c)] = 1.0 / std::sqrt(entry(*running.var, c) + forward.eps);
    }
  }
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    if (training) {
      reference("batch_statistics",
                py::dict(py::arg("x") = frame.array, py::arg("channel_axis") = frame.channel_axis,
                         py::arg("eps") = forward.eps, py::arg("mean") = seen(forward.saved->mean),
                         py::arg("inv_std") = seen(forward.saved->inv_std), py::arg("m2") = seen(forward.m2)));
    }
    forward.normalize_by_reference(!training);
  } else {
    const BatchNormArgs args = forward.args(!training);
    const py::gil_scoped_release released;
    runtime::batch_norm(plan_of(*table, frame), args, training);
  }
  forward.finish();
  const bool taken = training && update_running(running, frame.c, double(frame.count()), forward.saved->mean.data(),
                                                forward.m2.data(), momentum, unbiased, skip_nonfinite);
  return results[taken];
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
  const Choices choices(eps, channel_axis, activation);
  Forward forward(x, choices, weight, bias, residual, out, false);
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

  const py::object saved = forward.start(count, true);
  py::tuple result = py::make_tuple(forward.out, saved);
  for (std::int64_t c = 0; c < frame.c; ++c) {
    forward.saved->mean[std::size_t(c)] = entry(mean_of_all, c);
    forward.saved->inv_std[std::size_t(c)] = 1.0 / std::sqrt(entry(m2_of_all, c) / count + forward.eps);
  }
  forward.finish();
  const KernelTable* table = runtime::active_table();
  if (frame.empty()) return result;
  if (table == nullptr) {
    forward.normalize_by_reference(false);
  } else {
    const BatchNormArgs args = forward.args(false);
    const py::gil_scoped_release released;
    runtime::batch_norm(plan_of(*table, frame), args, false);
  }
  return result;
}

// Gives (count, mean, m2, mean_low, m2_low).
py::tuple batch_norm_stats(py::object x, py::handle channel_axis) {
  const Frame frame = frame_of(x, axis_number(channel_axis));
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

struct Backward {
  const Saved& saved;
  Frame frame;  // with x as it lies now
  Array dy_memory;
  py::object dy, dx, dresidual;
  std::vector<Named> read, written;

  Backward(py::object dy_given, const Saved& saved_given, py::object out, py::object residual_out)
      : saved(saved_given), frame(saved.frame), dy(dy_given), dx(out), dresidual(residual_out) {
    find_x();
    dy_memory = inspect_like(dy, {"dy"}, frame, {"saved.x"});
    if (saved.overwritten) throw py::value_error("saved: x was overwritten by the forward pass, out=x");
    if (fingerprint(frame.memory) != saved.fingerprint) refuse_x();
    read = {{frame.memory, {"saved.x"}}, {dy_memory, {"dy"}}};
    if (!dx.is_none()) {
      written.push_back({inspect_like(dx, {"out"}, frame, {"saved.x"}), {"out"}});
      require_writable(dx, {"out"});
    }
    if (!dresidual.is_none()) {
      if (!masked_residual()) {
        value_error({"residual_out"},
                    "expected None: the residual's gradient is dy itself unless an activation follows it");
      }
      written.push_back({inspect_like(dresidual, {"residual_out"}, frame, {"saved.x"}), {"residual_out"}});
      require_writable(dresidual, {"residual_out"});
    }
    refuse_overlaps(written, read);
  }

  [[noreturn]] static void refuse_x() { throw py::value_error("saved: x has been changed since the forward pass"); }

  // Its owner may have moved it, or made another array of it.
  void find_x() {
    const py::object now = viewed(frame.given, "saved.x");
    const Array memory = inspect_stored(now, {"saved.x"});
    frame.array = plain(now);
    if (memory.dtype != frame.memory.dtype || geometry_of(frame.array) != frame.geometry) refuse_x();
    frame.memory = memory;
  }

  bool masked_residual() const { return saved.residual && saved.mask != nullptr; }

  // After all checks: memory for (dx, dweight, dbias), and dresidual where there was a residual.
  py::tuple start() {
    if (dx.is_none()) dx = array_like(frame.array, "empty_like");
    if (dresidual.is_none() && masked_residual()) dresidual = array_like(frame.array, "empty_like");
    const Dtype dtype = saved.double_parameters ? Dtype::float64 : Dtype::float32;
    py::object arrays[2];
    for (int k = 0; k < 2; ++k) {
      arrays[k] = py::array(py::dtype(dtype_name(dtype)), py::ssize_t(frame.c));
      gradients_[k] = inspect(arrays[k], {"gradient"});
    }
    if (!saved.residual) return py::make_tuple(dx, arrays[0], arrays[1]);
    return py::make_tuple(dx, arrays[0], arrays[1], masked_residual() ? dresidual : dy);
  }

  void finish(const Channels& sum_dy, const Channels& sum_dy_d) const {
    for (std::int64_t c = 0; c < frame.c; ++c) {
      set_entry(gradients_[0], c, saved.inv_std[std::size_t(c)] * sum_dy_d[std::size_t(c)]);
      set_entry(gradients_[1], c, sum_dy[std::size_t(c)]);
    }
  }

  BatchNormGradientArgs args(Channels& sum_dy, Channels& sum_dy_d) const {
    BatchNormGradientArgs a = {};
    a.n = frame.n;
    a.c = frame.c;
    a.l = frame.l;
    a.x = frame.memory.data;
    a.dy = dy_memory.data;
    a.mask = saved.mask.get();
    a.scale = saved.scale.data();
    a.mean = saved.mean.data();
    a.inv_std = saved.inv_std.data();
    a.sum_dy = sum_dy.data();
    a.sum_dy_d = sum_dy_d.data();
    if (!dx.is_none()) a.dx = inspect_stored(dx, {"out"}).data;
    if (!dresidual.is_none()) a.dresidual = inspect_stored(dresidual, {"residual_out"}).data;
    a.count = saved.count;
    a.training = saved.training;
    return a;
  }

  void sums_by_reference(Channels& sum_dy, Channels& sum_dy_d) const {
    Channels mean = saved.mean;
    reference("gradient_sums", py::dict(py::arg("dy") = plain(dy), py::arg("x") = frame.array,
                                        py::arg("channel_axis") = frame.channel_axis,
                                        py::arg("mask") = saved.mask_array(), py::arg("mean") = seen(mean),
                                        py::arg("sum_dy") = seen(sum_dy), py::arg("sum_dy_d") = seen(sum_dy_d)));
  }
  void gradient_by_reference(Channels& sum_dy, Channels& sum_dy_d) const {
    Channels scale = saved.scale, mean = saved.mean, inv_std = saved.inv_std;
    reference("gradient",
              py::dict(py::arg("dy") = plain(dy), py::arg("x") = frame.array,
                       py::arg("channel_axis") = frame.channel_axis, py::arg("mask") = saved.mask_array(),
                       py::arg("scale") = seen(scale), py::arg("mean") = seen(mean), py::arg("inv_std") = seen(inv_std),
                       py::arg("sum_dy") = seen(sum_dy), py::arg("sum_dy_d") = seen(sum_dy_d),
                       py::arg("count") = saved.count, py::arg("training") = saved.training, py::arg("dx") = plain(dx),
                       py::arg("dresidual") = plain_if(dresidual)));
  }

 private:
  Array gradients_[2] = {};  // dweight, dbias
};

py::tuple batch_norm_backward(py::object dy, const Saved& saved, py::object out, py::object residual_out) {
  Backward backward(dy, saved, out, residual_out);
  if (saved.training && saved.count != double(saved.frame.count())) {
    throw py::value_error(
        "saved: has the statistics of other workers too; expected batch_norm_backward_sums, merge_grad_sums and "
        "batch_norm_backward_apply");
  }
  py::tuple result = backward.start();
  Channels sum_dy(saved.mean.size()), sum_dy_d(saved.mean.size());
  const KernelTable* table = runtime::active_table();
  if (backward.frame.empty()) {
    // The sums are 0.
  } else if (table == nullptr) {
    backward.sums_by_reference(sum_dy, sum_dy_d);
    backward.gradient_by_reference(sum_dy, sum_dy_d);
  } else {
    const BatchNormGradientArgs args = backward.args(sum_dy, sum_dy_d);
    const py::gil_scoped_release released;
    runtime::batch_norm_backward(plan_of(*table, backward.frame), args);
  }
  backward.finish(sum_dy, sum_dy_d);
  return result;
}

// Gives (sum dy, sum dy (x - mean)) of this worker's values.
py::tuple batch_norm_backward_sums(py::object dy, const Saved& saved) {
  const Backward backward(dy, saved, py::none(), py::none());
  Channels sum_dy(saved.mean.size()), sum_dy_d(saved.mean.size());
  const KernelTable* table = runtime::active_table();
  if (backward.frame.empty()) {
    // The sums are 0.
  } else if (table == nullptr) {
    backward.sums_by_reference(sum_dy, sum_dy_d);
  } else {
    const BatchNormGradientArgs args = backward.args(sum_dy, sum_dy_d);
    const py::gil_scoped_release released;
    runtime::batch_norm_gradient_sums(plan_of(*table, backward.frame), args);
  }
  return py::make_tuple(Doubles(py::ssize_t(sum_dy.size()), sum_dy.data()),
                        Doubles(py::ssize_t(sum_dy_d.size()), sum_dy_d.data()));
}

// With the sums of all workers.
py::tuple batch_norm_backward_apply(py::object dy, const Saved& saved, py::object sum_dy_given,
                                    py::object sum_dy_d_given, py::object out, py::object residual_out) {
  Backward backward(dy, saved, out, residual_out);
  const Array sums[2] = {inspect_statistics(sum_dy_given, {"sums.dy"}, saved.frame.c),
                         inspect_statistics(sum_dy_d_given, {"sums.dy_d"}, saved.frame.c)};
  refuse_overlaps(backward.written, {{sums[0], {"sums.dy"}}, {sums[1], {"sums.dy_d"}}});
  py::tuple result = backward.start();
  Channels sum_dy = widen(sums[0], saved.frame.c), sum_dy_d = widen(sums[1], saved.frame.c);
  const KernelTable* table = runtime::active_table();
  if (backward.frame.empty()) {
    // There is no dx.
  } else if (table == nullptr) {
    backward.gradient_by_reference(sum_dy, sum_dy_d);
  } else {
    const BatchNormGradientArgs args = backward.args(sum_dy, sum_dy_d);
    const py::gil_scoped_release released;
    runtime::batch_norm_gradient(plan_of(*table, backward.frame), args);
  }
  backward.finish(sum_dy, sum_dy_d);
  return result;
}

// The parts of what was saved that are no array of the caller's: (2, C) mean and inv_std, and the mask. An engine that
// differentiates keeps arrays only.
py::tuple batch_norm_parts(const Saved& saved) {
  const std::size_t channels = saved.mean.size();
  Doubles statistics({py::ssize_t(2), py::ssize_t(channels)});
  std::copy(saved.mean.begin(), saved.mean.end(), statistics.mutable_data());
  std::copy(saved.inv_std.begin(), saved.inv_std.end(), statistics.mutable_data() + channels);
  if (saved.mask == nullptr) return py::make_tuple(statistics, py::none());
  using Bits = std::shared_ptr<std::uint16_t[]>;
  const py::capsule owner(new Bits(saved.mask), [](void* bits) { delete static_cast<Bits*>(bits); });
  return py::make_tuple(statistics, py::array_t<std::uint16_t>(saved.mask_words, saved.mask.get(), owner));
}

// The inverse: what a forward pass over x saved, from those parts. The mask is held, not copied.
py::object batch_norm_saved(const py::object& x, py::handle channel_axis, const py::object& weight_given,
                            const py::object& statistics, const py::object& mask, py::handle training_given,
                            py::handle residual_given) {
  const bool training = flag(training_given, "training"), residual = flag(residual_given, "residual");
  const Frame frame = frame_of(x, axis_number(channel_axis));
  const auto channels = static_cast<std::size_t>(frame.c);
  if (!py::isinstance<Doubles>(statistics) || shape_of(statistics) != std::vector<std::int64_t>{2, frame.c}) {
    value_error({"statistics"}, "expected a float64 array of shape (2, " + std::to_string(frame.c) + ")");
  }
  require_contiguous(statistics, {"statistics"});
  const auto* values = statistics.cast<Doubles>().data();
  const Channels mean(values, values + channels), inv_std(values + channels, values + 2 * channels);
  Channels scale = inv_std;
  bool doubles = frame.memory.dtype == Dtype::float64;
  if (const py::object weight = plain_if(weight_given); !weight.is_none()) {
    const Array array = inspect_channels(weight, {"weight"}, frame, false);
    for (std::size_t c = 0; c < channels; ++c) scale[c] *= entry(array, std::int64_t(c));
    doubles = array.dtype == Dtype::float64;
  }
  std::shared_ptr<std::uint16_t[]> bits;
  std::int64_t bits_words = 0;
  if (!mask.is_none()) {
    bits_words = words(frame) + 1;
    if (!py::isinstance<py::array_t<std::uint16_t>>(mask) || shape_of(mask) != std::vector<std::int64_t>{bits_words}) {
      value_error({"mask"}, "expected a uint16 array of shape (" + std::to_string(bits_words) + ",)");
    }
    require_contiguous(mask, {"mask"});
    auto held = std::make_shared<py::object>(mask);
    auto* data = static_cast<std::uint16_t*>(const_cast<void*>(mask.cast<py::array>().data()));
    bits = std::shared_ptr<std::uint16_t[]>(data, [held](std::uint16_t*) {});
  }
  return py::cast(Saved{frame, fingerprint(frame.memory), false, training, residual, double(frame.count()), mean,
                        inv_std, std::move(scale), std::move(bits), bits_words, doubles});
}

// A view of what an object holds, for as long as it lives; not to be written, for the backward pass needs it.
template <class T>
py::object read_only(const py::object& owner, const T* data, std::size_t count) {
  py::array_t<T> array(py::ssize_t(count), data, owner);
  py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

}  // namespace

void register_batch_norm(py::module_& m) {
  py::class_<Saved>(m, "BatchNormSaved",
                    "What `batch_norm_backward` needs of the forward pass. `x` is the caller's array, not a copy.",
                    py::is_final(), whole_from_birth())
      .def_property_readonly(
          "x", [](const Saved& s) { return s.frame.given; }, "The array that was normalized, as it was given.")
      .def_property_readonly(
          "mean",
          [](const py::object& self) {
            const auto& s = self.cast<const Saved&>();
            return read_only(self, s.mean.data(), s.mean.size());
          },
          "(C,) float64, the mean that was used; read-only.")
      .def_property_readonly(
          "inv_std",
          [](const py::object& self) {
            const auto& s = self.cast<const Saved&>();
            return read_only(self, s.inv_std.data(), s.inv_std.size());
          },
          "(C,) float64, 1 / √(var + eps); read-only.")
      .def_property_readonly(
          "mask",
          [](const py::object& self) -> py::object {
            const auto& s = self.cast<const Saved&>();
            if (s.mask == nullptr) return py::none();
            return read_only(self, s.mask.get(), std::size_t(s.mask_words));
          },
          "Bits of what relu let pass, and a word of zeros; read-only. None without activation.")
      .def_property_readonly(
          "count", [](const Saved& s) { return std::int64_t(s.count); }, "Values per channel behind the statistics.")
      .def_property_readonly(
          "training", [](const Saved& s) { return s.training; }, "Whether the statistics were the batch's.");
  m.def("batch_norm", &batch_norm);
  m.def("batch_norm_apply", &batch_norm_apply);
  m.def("batch_norm_stats", &batch_norm_stats);
  m.def("batch_norm_update", &batch_norm_update);
  m.def("batch_norm_parts", &batch_norm_parts);
  m.def("batch_norm_saved", &batch_norm_saved);
  m.def("batch_norm_backward", &batch_norm_backward, py::arg("dy"), py::arg("saved"), py::arg("out"),
        py::arg("residual_out"));
  m.def("batch_norm_backward_sums", &batch_norm_backward_sums);
  m.def("batch_norm_backward_apply", &batch_norm_backward_apply);
}

}  // namespace fusedstep::bind
