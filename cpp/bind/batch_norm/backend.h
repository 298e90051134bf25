// Who computes batch norm: the kernels of an instruction set, or the NumPy reference.
#pragma once

#include <memory>

#include "bind/batch_norm/backward.h"
#include "bind/batch_norm/forward.h"

namespace fusedstep::bind {

// Statistics with twice the precision of double, in two parts each.
struct ExactMoments {
  explicit ExactMoments(std::int64_t channels) : mean(channels), m2(channels), mean_low(channels), m2_low(channels) {}
  Doubles mean, m2, mean_low, m2_low;
};

class BatchNormBackend {
 public:
  virtual ~BatchNormBackend() = default;

  // The moments of x, which is not empty.
  virtual void statistics(const BatchView& x, ExactMoments& out) const = 0;
  // Forward passes that have been started: they fill what is saved, and write y.
  // With the statistics of the batch, which the running ones take. Gives whether they took it.
  virtual bool train(ForwardPass& pass, const RunningArrays& running, const runtime::RunningUpdate& update) const = 0;
  // With the running statistics.
  virtual void evaluate(ForwardPass& pass, const RunningArrays& running) const = 0;
  // With the statistics of all workers; x may be empty.
  virtual void apply(ForwardPass& pass, const runtime::BatchMoments& batch) const = 0;
  // scale = inv_std * weight, of the channels; a null weight is 1.
  virtual void set_scale(const Channels& inv_std, const double* weight, Channels& scale) const = 0;
  // Takes a batch into the running statistics, of so many channels. False if it was left out.
  virtual bool update_running(const RunningArrays& running, const runtime::BatchMoments& batch, std::int64_t channels,
                              const runtime::RunningUpdate& update) const = 0;

  // Backward passes that have been started; x may be empty. They write dx, dresidual, dweight and dbias.
  virtual void backward(const BackwardPass& pass) const = 0;
  // With the sums of all workers.
  virtual void backward_apply(const BackwardPass& pass, GradientSums& sums) const = 0;
  // The sums over x, which is not empty.
  virtual void backward_sums(const BackwardPass& pass, GradientSums& sums) const = 0;
};

std::unique_ptr<const BatchNormBackend> native_batch_norm(const KernelTable& table);
std::unique_ptr<const BatchNormBackend> numpy_batch_norm();

}  // namespace fusedstep::bind
