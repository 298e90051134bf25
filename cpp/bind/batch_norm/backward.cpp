#include "bind/batch_norm/backward.h"

namespace fusedstep::bind {
namespace {

[[noreturn]] void refuse_x() { throw py::value_error("saved: x has been changed since the forward pass"); }

}  // namespace

BackwardPass::BackwardPass(const py::object& dy_given, const BatchNormSaved& saved_given, const py::object& out,
                           const py::object& residual_out)
    : saved(saved_given), x(saved.x), dy(dy_given), dx(out), dresidual(residual_out) {
  find_x();
  dy_memory_ = inspect_like(dy, {"dy"}, x, {"saved.x"});
  if (saved.overwritten) throw py::value_error("saved: x was overwritten by the forward pass, out=x");
  if (fingerprint(x.memory) != saved.fingerprint) refuse_x();
  if (!dx.is_none()) add_written(dx, {"out"});
  if (!dresidual.is_none()) {
    if (!masks_residual()) {
      value_error({"residual_out"},
                  "expected None: the residual's gradient is dy itself unless an activation follows it");
    }
    add_written(dresidual, {"residual_out"});
  }
  refuse_overlaps({{x.memory, {"saved.x"}}, {dy_memory_, {"dy"}}});
}

// Its owner may have moved it, or made another array of it.
void BackwardPass::find_x() {
  const py::object now = memory_of(x.given, "saved.x");
  const Array memory = inspect_stored(now, {"saved.x"});
  x.array = plain(now);
  if (memory.dtype != x.memory.dtype || axis_layout(x.array) != x.axes) refuse_x();
  x.memory = memory;
}

void BackwardPass::add_written(const py::object& array, const Label& label) {
  const Array memory = inspect_like(array, label, x, {"saved.x"});
  require_writable(array, label);
  written_.push_back({memory, label});
}

py::tuple BackwardPass::start() {
  if (dx.is_none()) dx = array_like(x.array, "empty_like");
  if (dresidual.is_none() && masks_residual()) dresidual = array_like(x.array, "empty_like");
  const auto parameters = [&] { return py::array(py::dtype(dtype_name(parameter_dtype())), py::ssize_t(x.c)); };
  const py::object weight_gradient = parameters(), bias_gradient = parameters();
  dweight_ = inspect(weight_gradient, {"dweight"});
  dbias_ = inspect(bias_gradient, {"dbias"});
  if (!saved.residual) return py::make_tuple(dx, weight_gradient, bias_gradient);
  return py::make_tuple(dx, weight_gradient, bias_gradient, masks_residual() ? dresidual : dy);
}

BatchNormGradientArgs BackwardPass::args(GradientSums& sums) const {
  BatchNormGradientArgs a = {};
  a.n = x.n;
  a.c = x.c;
  a.l = x.l;
  a.x = x.memory.data;
  a.dy = dy_memory_.data;
  a.mask = saved.mask.get();
  a.scale = saved.scale.data();
  a.mean = saved.mean.data();
  a.inv_std = saved.inv_std.data();
  a.sum_dy = sums.dy.data();
  a.sum_dy_d = sums.dy_d.data();
  if (!dx.is_none()) a.dx = inspect_stored(dx, {"out"}).data;
  if (!dresidual.is_none()) a.dresidual = inspect_stored(dresidual, {"residual_out"}).data;
  a.count = saved.count;
  a.training = saved.training;
  return a;
}

}  // namespace fusedstep::bind
