// Batch norm by the NumPy reference.
#include <cstring>

#include "bind/batch_norm/backend.h"

namespace fusedstep::bind {
namespace {

template <class... Arguments>
py::object call(const char* function, Arguments&&... arguments) {
  return py::module_::import("fusedstep.reference.batch_norm").attr(function)(std::forward<Arguments>(arguments)...);
}

// Memory that is ours as an array, for as long as the reference runs. Any base keeps NumPy from copying it; of None GCC
// warns, for it sees that this is no array.
Doubles array_of(const double* values, std::int64_t channels) {
  return Doubles(py::ssize_t(channels), values, py::int_(0));
}
Doubles array_of(const Channels& values) { return array_of(values.data(), std::int64_t(values.size())); }

// Results of the reference, of a dtype that the memory has too.
void copy(const py::object& from, void* to) {
  const py::array array(from);
  std::memcpy(to, array.data(), std::size_t(array.nbytes()));
}
void copy(const py::object& from, Channels& to) { copy(from, to.data()); }

class NumpyBatchNorm : public BatchNormBackend {
 public:
  void statistics(const BatchView& x, ExactMoments& out) const override {
    call("exact_statistics", x.array, x.channel_axis, out.mean, out.m2, out.mean_low, out.m2_low);
  }

  bool train(ForwardPass& pass, const RunningArrays& running, const runtime::RunningUpdate& update) const override {
    BatchNormSaved& saved = *pass.saved;
    call("batch_statistics", pass.x.array, pass.x.channel_axis, pass.eps, array_of(saved.mean), array_of(saved.inv_std),
         array_of(pass.m2));
    set_scale(saved.inv_std, pass.weights(), saved.scale);
    const runtime::BatchMoments batch = {double(pass.x.count()), saved.mean.data(), pass.m2.data()};
    const Moved moved = moved_by(running, batch, pass.x.c, update);
    normalize(pass, false);
    store(moved, running);
    return moved.taken;
  }

  void evaluate(ForwardPass& pass, const RunningArrays& running) const override {
    BatchNormSaved& saved = *pass.saved;
    const runtime::RunningStatistics statistics = running.statistics();
    for (std::int64_t c = 0; c < pass.x.c; ++c) saved.mean[std::size_t(c)] = statistics.mean[c];
    copy(call("inverse_deviation", plain(running.var), 1.0, pass.eps), saved.inv_std);
    set_scale(saved.inv_std, pass.weights(), saved.scale);
    normalize(pass, true);
  }

  void apply(ForwardPass& pass, const runtime::BatchMoments& batch) const override {
    BatchNormSaved& saved = *pass.saved;
    saved.mean.assign(batch.mean, batch.mean + pass.x.c);
    copy(call("inverse_deviation", array_of(batch.m2, pass.x.c), batch.count, pass.eps), saved.inv_std);
    set_scale(saved.inv_std, pass.weights(), saved.scale);
    if (!pass.x.empty()) normalize(pass, false);
  }

  void set_scale(const Channels& inv_std, const double* weight, Channels& scale) const override {
    const py::object weights =
        weight == nullptr ? py::object(py::none()) : array_of(weight, std::int64_t(inv_std.size()));
    copy(call("channel_scale", array_of(inv_std), weights), scale);
  }

  bool update_running(const RunningArrays& running, const runtime::BatchMoments& batch, std::int64_t channels,
                      const runtime::RunningUpdate& update) const override {
    const Moved moved = moved_by(running, batch, channels, update);
    store(moved, running);
    return moved.taken;
  }

  void backward(const BackwardPass& pass) const override {
    GradientSums sums(pass.x.c);
    if (!pass.x.empty()) backward_sums(pass, sums);
    backward_apply(pass, sums);
  }

  // dx comes last: it may be written to an array of the caller's.
  void backward_apply(const BackwardPass& pass, GradientSums& sums) const override {
    const BatchNormSaved& saved = pass.saved;
    const Doubles inv_std = array_of(saved.inv_std), dy = array_of(sums.dy), dy_d = array_of(sums.dy_d);
    const py::tuple parameters = call("parameter_gradients", inv_std, dy, dy_d, dtype_name(pass.parameter_dtype()));
    copy(parameters[0], pass.dweight().data());
    copy(parameters[1], pass.dbias().data());
    if (pass.x.empty()) return;
    call("gradient", plain(pass.dy), pass.x.array, pass.x.channel_axis, saved.mask_array(), array_of(saved.scale),
         array_of(saved.mean), inv_std, dy, dy_d, saved.count, saved.training, plain(pass.dx),
         plain_or_none(pass.dresidual));
  }

  void backward_sums(const BackwardPass& pass, GradientSums& sums) const override {
    call("gradient_sums", plain(pass.dy), pass.x.array, pass.x.channel_axis, pass.saved.mask_array(),
         array_of(pass.saved.mean), array_of(sums.dy), array_of(sums.dy_d));
  }

 private:
  // The running statistics after a batch: null where none are kept, or the batch is left out.
  struct Moved {
    bool taken = true;
    py::object mean, var;
  };

  static Moved moved_by(const RunningArrays& running, const runtime::BatchMoments& batch, std::int64_t channels,
                        const runtime::RunningUpdate& update) {
    const Doubles mean = array_of(batch.mean, channels), m2 = array_of(batch.m2, channels);
    if (update.skip_nonfinite && !call("all_finite", mean, m2).cast<bool>()) return {false, {}, {}};
    if (!running.kept) return {};
    const py::tuple moved = call("running_statistics", plain(running.mean), plain(running.var), mean, m2, batch.count,
                                 update.momentum, update.unbiased);
    return {true, moved[0], moved[1]};
  }

  static void store(const Moved& moved, const RunningArrays& running) {
    if (!moved.mean) return;
    copy(moved.mean, running.mean_memory.data);
    copy(moved.var, running.var_memory.data);
  }

  static void normalize(const ForwardPass& pass, bool folded) {
    call("normalize", pass.x.array, pass.x.channel_axis, pass.weight, pass.bias, plain_or_none(pass.residual),
         array_of(pass.saved->mean), array_of(pass.saved->inv_std), plain(pass.out), pass.saved->mask_array(), folded);
  }
};

}  // namespace

std::unique_ptr<const BatchNormBackend> numpy_batch_norm() { return std::make_unique<NumpyBatchNorm>(); }

}  // namespace fusedstep::bind
