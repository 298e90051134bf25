// Batch norm by the kernels of an instruction set.
#include "bind/batch_norm/backend.h"
#include "runtime/batch_norm.h"

namespace fusedstep::bind {
namespace {

class NativeBatchNorm : public BatchNormBackend {
 public:
  explicit NativeBatchNorm(const KernelTable& table) : table_(table) {}

  void statistics(const BatchView& x, ExactMoments& out) const override {
    Channels inv_std(static_cast<std::size_t>(x.c));
    BatchNormArgs args = {};
    args.n = x.n;
    args.c = x.c;
    args.l = x.l;
    args.x = x.memory.data;
    args.mean = out.mean.mutable_data();
    args.inv_std = inv_std.data();
    args.m2 = out.m2.mutable_data();
    args.mean_low = out.mean_low.mutable_data();
    args.m2_low = out.m2_low.mutable_data();
    args.eps = 1.0;
    const py::gil_scoped_release released;
    runtime::batch_norm_statistics(plan(x), args);
  }

  bool train(ForwardPass& pass, const RunningArrays& running, const runtime::RunningUpdate& update) const override {
    normalize(pass, true, false);
    set_scale(pass.saved->inv_std, pass.weights(), pass.saved->scale);
    const runtime::BatchMoments batch = {double(pass.x.count()), pass.saved->mean.data(), pass.m2.data()};
    return update_running(running, batch, pass.x.c, update);
  }

  void evaluate(ForwardPass& pass, const RunningArrays& running) const override {
    const runtime::RunningStatistics statistics = running.statistics();
    for (std::int64_t c = 0; c < pass.x.c; ++c) {
      pass.saved->mean[std::size_t(c)] = statistics.mean[c];
      pass.saved->inv_std[std::size_t(c)] = runtime::inverse_deviation(statistics.var[c], 1.0, pass.eps);
    }
    set_scale(pass.saved->inv_std, pass.weights(), pass.saved->scale);
    normalize(pass, false, true);
  }

  void apply(ForwardPass& pass, const runtime::BatchMoments& batch) const override {
    for (std::int64_t c = 0; c < pass.x.c; ++c) {
      pass.saved->mean[std::size_t(c)] = batch.mean[c];
      pass.saved->inv_std[std::size_t(c)] = runtime::inverse_deviation(batch.m2[c], batch.count, pass.eps);
    }
    set_scale(pass.saved->inv_std, pass.weights(), pass.saved->scale);
    if (!pass.x.empty()) normalize(pass, false, false);
  }

  void set_scale(const Channels& inv_std, const double* weight, Channels& scale) const override {
    runtime::channel_scale(inv_std.data(), weight, scale.data(), std::int64_t(inv_std.size()));
  }

  bool update_running(const RunningArrays& running, const runtime::BatchMoments& batch, std::int64_t channels,
                      const runtime::RunningUpdate& update) const override {
    if (!runtime::takes_batch(update, batch, channels)) return false;
    if (running.kept) runtime::update_running(running.statistics(), batch, update, channels);
    return true;
  }

  void backward(const BackwardPass& pass) const override {
    GradientSums sums(pass.x.c);
    if (!pass.x.empty()) {
      const BatchNormGradientArgs args = pass.args(sums);
      const py::gil_scoped_release released;
      runtime::batch_norm_backward(plan(pass.x), args);
    }
    set_parameter_gradients(pass, sums);
  }

  void backward_apply(const BackwardPass& pass, GradientSums& sums) const override {
    if (!pass.x.empty()) {
      const BatchNormGradientArgs args = pass.args(sums);
      const py::gil_scoped_release released;
      runtime::batch_norm_gradient(plan(pass.x), args);
    }
    set_parameter_gradients(pass, sums);
  }

  void backward_sums(const BackwardPass& pass, GradientSums& sums) const override {
    const BatchNormGradientArgs args = pass.args(sums);
    const py::gil_scoped_release released;
    runtime::batch_norm_gradient_sums(plan(pass.x), args);
  }

 private:
  runtime::BatchNormPlan plan(const BatchView& x) const { return {table_, x.memory.dtype, x.layout}; }

  void normalize(ForwardPass& pass, bool training, bool folded) const {
    const BatchNormArgs args = pass.args(folded);
    const py::gil_scoped_release released;
    runtime::batch_norm(plan(pass.x), args, training);
  }

  static void set_parameter_gradients(const BackwardPass& pass, const GradientSums& sums) {
    runtime::parameter_gradients(pass.saved.inv_std.data(), sums.dy.data(), sums.dy_d.data(), pass.dweight(),
                                 pass.dbias(), pass.x.c);
  }

  const KernelTable& table_;
};

}  // namespace

std::unique_ptr<const BatchNormBackend> native_batch_norm(const KernelTable& table) {
  return std::make_unique<NativeBatchNorm>(table);
}

}  // namespace fusedstep::bind
