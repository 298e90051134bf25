// A forward pass: its inputs, checked, and memory for its results.
#pragma once

#include "bind/batch_norm/saved.h"
#include "runtime/batch_norm_channels.h"

namespace fusedstep::bind {

// What is given beside arrays. It is read before them, for an object that stands for a number may run code of others.
struct ForwardOptions {
  double eps;
  py::ssize_t channel_axis;
  bool relu;

  ForwardOptions(py::handle eps_given, py::handle channel_axis_given, py::handle activation)
      : eps(positive_eps(eps_given)), channel_axis(axis_number(channel_axis_given)), relu(takes_relu(activation)) {}
};

// The caller's running statistics, or none.
struct RunningArrays {
  py::object mean, var;
  Array mean_memory, var_memory;
  bool kept = false;

  runtime::RunningStatistics statistics() const {
    return {{mean_memory.data, mean_memory.dtype}, {var_memory.data, var_memory.dtype}};
  }
};

class ForwardPass {
 public:
  // Checks the arrays. `out` may be x itself where the pass only reads each value before it writes it.
  ForwardPass(const py::object& x_given, const ForwardOptions& options, const py::object& weight_given,
              const py::object& bias_given, const py::object& residual_given, const py::object& out_given,
              bool may_be_in_place);
  RunningArrays inspect_running(const py::object& mean, const py::object& var, bool written);
  void add_read(const Array& array, const Label& label) { read_.push_back({array, label}); }
  void refuse_overlaps() const { bind::refuse_overlaps(written_, read_); }

  // After all checks: makes memory for all results, so that nothing fails once the first of them is written. Gives
  // what is saved.
  py::object start(double count, bool training);

  // y = x * scale + shift if `folded`, else weight * (x - mean) * inv_std + bias.
  BatchNormArgs args(bool folded);

  BatchView x;
  py::object weight, bias, residual, out;
  double eps;
  // From start() on.
  BatchNormSaved* saved = nullptr;
  Channels m2;
  const double* weights() const { return weight.is_none() ? nullptr : weights_.data(); }

 private:
  bool relu_;
  bool in_place_ = false;
  Array weight_memory_ = {}, bias_memory_ = {};
  Channels weights_, biases_;
  std::vector<NamedArray> read_, written_;
};

}  // namespace fusedstep::bind
