// The functions of batch norm: each checks its arguments once, makes its results, and has a backend compute them.
#include "bind/arguments.h"
#include "bind/backend.h"
#include "bind/batch_norm/backend.h"
#include "bind/module.h"

namespace fusedstep::bind {
namespace {

void require_trainable(const BatchView& x) {
  if (x.count() >= 2) return;
  value_error({"x"}, "expected more than one value per channel in training, got shape " + shape_text(x.array));
}

void require_positive(const RunningArrays& running, std::int64_t channels) {
  if (!running.kept) throw py::value_error("running_mean, running_var: expected arrays with training=False, got None");
  const runtime::ChannelArray var = running.statistics().var;
  for (std::int64_t c = 0; c < channels; ++c) {
    if (var[c] < 0.0) value_error({"running_var", c}, "expected a number >= 0, got " + shown(py::float_(var[c])));
  }
}

// Gives (y, saved, whether the running statistics took the batch).
py::tuple batch_norm(const py::object& x, const py::object& weight, const py::object& bias,
                     const py::object& running_mean, const py::object& running_var, py::handle training_given,
                     py::handle momentum, py::handle eps, py::handle channel_axis, py::handle activation,
                     const py::object& residual, py::handle unbiased_given, py::handle skip_nonfinite,
                     const py::object& out) {
  const bool training = flag(training_given, "training"), unbiased = flag(unbiased_given, "unbiased");
  const bool skip = flag(skip_nonfinite, "skip_nonfinite");
  const runtime::RunningUpdate update = {unit_momentum(momentum), unbiased, skip};
  const ForwardOptions options(eps, channel_axis, activation);
  ForwardPass pass(x, options, weight, bias, residual, out, !training);
  require_values(pass.x);
  const RunningArrays running = pass.inspect_running(running_mean, running_var, training);
  if (training) {
    require_trainable(pass.x);
  } else {
    require_positive(running, pass.x.c);
  }
  pass.refuse_overlaps();

  const py::object saved = pass.start(double(pass.x.count()), training);
  py::tuple skipped = py::make_tuple(pass.out, saved, false), taken = py::make_tuple(pass.out, saved, true);
  const BatchNormBackend& backend = *active_backends().batch_norm;
  if (training) return backend.train(pass, running, update) ? taken : skipped;
  backend.evaluate(pass, running);
  return skipped;
}

void require_moments(const Array& m2) {
  const runtime::ChannelArray numbers(m2.data, m2.dtype);
  for (std::int64_t c = 0; c < m2.size; ++c) {
    if (numbers[c] < 0.0) {
      value_error({"stats.m2", c}, "expected a number >= 0, got " + shown(py::float_(numbers[c])));
    }
  }
}

runtime::BatchMoments moments_of(double count, const Array& mean, const Array& m2) {
  return {count, reinterpret_cast<const double*>(mean.data), reinterpret_cast<const double*>(m2.data)};
}

// Gives (y, saved), normalized with the statistics of all workers.
py::tuple batch_norm_apply(const py::object& x, py::handle count_given, py::handle mean_given, py::handle m2_given,
                           const py::object& weight, const py::object& bias, py::handle eps, py::handle channel_axis,
                           py::handle activation, const py::object& residual, const py::object& out) {
  const double count = require_count(count_given, {"stats.count"});
  const ForwardOptions options(eps, channel_axis, activation);
  ForwardPass pass(x, options, weight, bias, residual, out, false);
  const Array mean = inspect_statistics(mean_given, {"stats.mean"}, pass.x.c);
  const Array m2 = inspect_statistics(m2_given, {"stats.m2"}, pass.x.c);
  require_moments(m2);
  pass.add_read(mean, {"stats.mean"});
  pass.add_read(m2, {"stats.m2"});
  pass.refuse_overlaps();

  const py::object saved = pass.start(count, true);
  py::tuple result = py::make_tuple(pass.out, saved);
  active_backends().batch_norm->apply(pass, moments_of(count, mean, m2));
  return result;
}

// Gives (count, mean, m2, mean_low, m2_low).
py::tuple batch_norm_stats(const py::object& x_given, py::handle channel_axis) {
  const BatchView x = view_batch(x_given, axis_number(channel_axis));
  ExactMoments moments(x.c);
  if (x.empty()) {
    for (Doubles* part : {&moments.mean, &moments.m2, &moments.mean_low, &moments.m2_low}) {
      std::fill_n(part->mutable_data(), x.c, 0.0);
    }
  } else {
    active_backends().batch_norm->statistics(x, moments);
  }
  return py::make_tuple(x.count(), moments.mean, moments.m2, moments.mean_low, moments.m2_low);
}

// (C,) of any dtype of the arithmetic: `like` has the channels.
void require_running(py::handle array, const Label& label, const Array& memory, const Array& like) {
  require_contiguous(array, label);
  require_writable(array, label);
  if (axes_of(array) != 1 || memory.size != like.size) {
    value_error(label, "expected shape (C,), got " + shape_text(array));
  }
}

// False if the batch was left out.
bool batch_norm_update(const py::object& running_mean, const py::object& running_var, py::handle count_given,
                       py::handle mean_given, py::handle m2_given, py::handle momentum_given, py::handle unbiased_given,
                       py::handle skip_nonfinite) {
  const double count = require_count(count_given, {"stats.count"}), momentum = unit_momentum(momentum_given);
  const bool unbiased = flag(unbiased_given, "unbiased"), skip = flag(skip_nonfinite, "skip_nonfinite");
  const Array running[2] = {inspect(running_mean, {"running_mean"}), inspect(running_var, {"running_var"})};
  require_running(running_mean, {"running_mean"}, running[0], running[0]);
  require_running(running_var, {"running_var"}, running[1], running[0]);
  const std::int64_t channels = running[0].size;
  const Array mean = inspect_statistics(mean_given, {"stats.mean"}, channels);
  const Array m2 = inspect_statistics(m2_given, {"stats.m2"}, channels);
  refuse_overlaps({{running[0], {"running_mean"}}, {running[1], {"running_var"}}},
                  {{mean, {"stats.mean"}}, {m2, {"stats.m2"}}});
  return active_backends().batch_norm->update_running({running_mean, running_var, running[0], running[1], true},
                                                      moments_of(count, mean, m2), channels,
                                                      {momentum, unbiased, skip});
}

py::tuple batch_norm_backward(const py::object& dy, const BatchNormSaved& saved, const py::object& out,
                              const py::object& residual_out) {
  BackwardPass pass(dy, saved, out, residual_out);
  if (saved.training && saved.count != double(saved.x.count())) {
    throw py::value_error(
        "saved: has the statistics of other workers too; expected batch_norm_backward_sums, merge_grad_sums and "
        "batch_norm_backward_apply");
  }
  py::tuple result = pass.start();
  active_backends().batch_norm->backward(pass);
  return result;
}

// Gives the sums of dy and of dy (x - mean) over this worker's values.
py::tuple batch_norm_backward_sums(const py::object& dy, const BatchNormSaved& saved) {
  const BackwardPass pass(dy, saved, py::none(), py::none());
  GradientSums sums(pass.x.c);
  if (!pass.x.empty()) active_backends().batch_norm->backward_sums(pass, sums);
  return py::make_tuple(Doubles(pass.x.c, sums.dy.data()), Doubles(pass.x.c, sums.dy_d.data()));
}

// With the sums of all workers.
py::tuple batch_norm_backward_apply(const py::object& dy, const BatchNormSaved& saved, py::handle sum_dy,
                                    py::handle sum_dy_d, const py::object& out, const py::object& residual_out) {
  BackwardPass pass(dy, saved, out, residual_out);
  const Array given[2] = {inspect_statistics(sum_dy, {"sums.dy"}, saved.x.c),
                          inspect_statistics(sum_dy_d, {"sums.dy_d"}, saved.x.c)};
  pass.refuse_overlaps({{given[0], {"sums.dy"}}, {given[1], {"sums.dy_d"}}});
  py::tuple result = pass.start();
  GradientSums sums(widen(given[0]), widen(given[1]));
  active_backends().batch_norm->backward_apply(pass, sums);
  return result;
}

}  // namespace

void register_batch_norm(py::module_& m) {
  // Python calls by position: for keywords, pybind11 takes 16,000 instructions a call.
  using py::arg;
  register_batch_norm_saved(m);
  register_batch_norm_parts(m);
  m.def("batch_norm", &batch_norm, arg("x"), arg("weight"), arg("bias"), arg("running_mean"), arg("running_var"),
        arg("training"), arg("momentum"), arg("eps"), arg("channel_axis"), arg("activation"), arg("residual"),
        arg("unbiased"), arg("skip_nonfinite"), arg("out"));
  m.def("batch_norm_apply", &batch_norm_apply, arg("x"), arg("count"), arg("mean"), arg("m2"), arg("weight"),
        arg("bias"), arg("eps"), arg("channel_axis"), arg("activation"), arg("residual"), arg("out"));
  m.def("batch_norm_stats", &batch_norm_stats, arg("x"), arg("channel_axis"));
  m.def("batch_norm_update", &batch_norm_update, arg("running_mean"), arg("running_var"), arg("count"), arg("mean"),
        arg("m2"), arg("momentum"), arg("unbiased"), arg("skip_nonfinite"));
  m.def("batch_norm_backward", &batch_norm_backward, arg("dy"), arg("saved"), arg("out"), arg("residual_out"));
  m.def("batch_norm_backward_sums", &batch_norm_backward_sums, arg("dy"), arg("saved"));
  m.def("batch_norm_backward_apply", &batch_norm_backward_apply, arg("dy"), arg("saved"), arg("sum_dy"),
        arg("sum_dy_d"), arg("out"), arg("residual_out"));
}

}  // namespace fusedstep::bind
