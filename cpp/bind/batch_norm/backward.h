// A backward pass: its inputs, checked, and memory for its results.
#pragma once

#include "bind/batch_norm/saved.h"
#include "runtime/batch_norm_channels.h"

namespace fusedstep::bind {

// Sums over the values of each channel: of dy, and of dy (x - mean).
struct GradientSums {
  explicit GradientSums(std::int64_t channels) : dy(std::size_t(channels)), dy_d(std::size_t(channels)) {}
  GradientSums(Channels of_dy, Channels of_dy_d) : dy(std::move(of_dy)), dy_d(std::move(of_dy_d)) {}
  Channels dy, dy_d;
};

class BackwardPass {
 public:
  // Checks that x is what the forward pass saw, and the other arrays.
  BackwardPass(const py::object& dy_given, const BatchNormSaved& saved_given, const py::object& out,
               const py::object& residual_out);
  void refuse_overlaps(const std::vector<NamedArray>& read) const { bind::refuse_overlaps(written_, read); }

  // After all checks: makes memory for (dx, dweight, dbias), and dresidual where there was a residual.
  py::tuple start();

  BatchNormGradientArgs args(GradientSums& sums) const;
  // From start() on.
  runtime::ChannelArray dweight() const { return {dweight_.data, dweight_.dtype}; }
  runtime::ChannelArray dbias() const { return {dbias_.data, dbias_.dtype}; }
  Dtype parameter_dtype() const { return saved.double_parameters ? Dtype::float64 : Dtype::float32; }

  const BatchNormSaved& saved;
  BatchView x;  // as it lies now
  py::object dy, dx, dresidual;

 private:
  void find_x();
  bool masks_residual() const { return saved.residual && saved.mask != nullptr; }
  void add_written(const py::object& array, const Label& label);

  Array dy_memory_;
  Array dweight_ = {}, dbias_ = {};
  std::vector<NamedArray> written_;
};

}  // namespace fusedstep::bind
