#include "bind/batch_norm/forward.h"

namespace fusedstep::bind {

ForwardPass::ForwardPass(const py::object& x_given, const ForwardOptions& options, const py::object& weight_given,
                         const py::object& bias_given, const py::object& residual_given, const py::object& out_given,
                         bool may_be_in_place)
    : x(view_batch(x_given, options.channel_axis)),
      weight(plain_or_none(weight_given)),
      bias(plain_or_none(bias_given)),
      residual(residual_given),
      out(out_given),
      eps(options.eps),
      relu_(options.relu) {
  require_eps_for(eps, x.memory.dtype);
  if (!weight.is_none()) {
    weight_memory_ = inspect_channels(weight, {"weight"}, x, false);
    read_.push_back({weight_memory_, {"weight"}});
  }
  if (!bias.is_none()) {
    bias_memory_ = inspect_channels(bias, {"bias"}, x, false);
    read_.push_back({bias_memory_, {"bias"}});
  }
  if (!residual.is_none()) read_.push_back({inspect_like(residual, {"residual"}, x, {"x"}), {"residual"}});
  if (!out.is_none()) {
    const Array memory = inspect_like(out, {"out"}, x, {"x"});
    require_writable(out, {"out"});
    in_place_ = may_be_in_place && memory.data == x.memory.data;
    written_.push_back({memory, {"out"}});
  }
  if (!in_place_) read_.insert(read_.begin(), {x.memory, {"x"}});
}

RunningArrays ForwardPass::inspect_running(const py::object& mean, const py::object& var, bool written) {
  RunningArrays running;
  if (mean.is_none() != var.is_none()) throw py::value_error("running_mean, running_var: expected both or neither");
  if (mean.is_none()) return running;
  running = {mean, var, inspect_channels(mean, {"running_mean"}, x, written),
             inspect_channels(var, {"running_var"}, x, written), true};
  std::vector<NamedArray>& list = written ? written_ : read_;
  list.push_back({running.mean_memory, {"running_mean"}});
  list.push_back({running.var_memory, {"running_var"}});
  return running;
}

py::object ForwardPass::start(double count, bool training) {
  if (!weight.is_none()) weights_ = widen(weight_memory_);
  if (!bias.is_none()) biases_ = widen(bias_memory_);
  if (out.is_none()) out = array_like(x.array, "empty_like");
  const Dtype parameters = weight.is_none() ? x.memory.dtype : weight_memory_.dtype;
  const auto channels = static_cast<std::size_t>(x.c);
  BatchNormSaved made = {x,
                         in_place_ ? 0 : fingerprint(x.memory),
                         in_place_,
                         training,
                         !residual.is_none(),
                         count,
                         Channels(channels),
                         Channels(channels),
                         Channels(channels),
                         nullptr,
                         0,
                         parameters == Dtype::float64};
  if (relu_) made.make_mask();
  py::object object = py::cast(std::move(made));
  saved = object.cast<BatchNormSaved*>();
  m2.resize(channels);
  return object;
}

BatchNormArgs ForwardPass::args(bool folded) {
  BatchNormArgs a = {};
  a.n = x.n;
  a.c = x.c;
  a.l = x.l;
  a.x = x.memory.data;
  if (!residual.is_none()) a.residual = inspect_stored(residual, {"residual"}).data;
  a.y = inspect_stored(out, {"out"}).data;
  a.mask = saved->mask.get();
  a.weight = weights();
  if (!bias.is_none()) a.bias = biases_.data();
  a.mean = saved->mean.data();
  a.inv_std = saved->inv_std.data();
  a.m2 = m2.data();
  a.eps = eps;
  a.folded = folded;
  return a;
}

}  // namespace fusedstep::bind
