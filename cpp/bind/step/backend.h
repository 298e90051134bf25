// Who computes a step: the kernels of an instruction set, or the NumPy reference.
#pragma once

#include <memory>

#include "bind/step/work.h"

namespace fusedstep::bind {

class StepBackend {
 public:
  virtual ~StepBackend() = default;

  // Into work.sums: the squares of each gradient and how many of its elements are not finite.
  virtual void measure_gradients(const runtime::Rule& rule, StepWork& work) const = 0;
  // All that may fail, once the states are there: writes to no array. The scalars move on.
  virtual void prepare(const runtime::Rule& rule, StepWork& work) const = 0;
  // The step itself.
  virtual void write(StepWork& work) const = 0;
  // The sums of telemetry, where prepare() did not leave them.
  virtual void measure(const runtime::Rule& rule, StepWork& work) const = 0;

  // Equations over the whole step; see runtime/whole_step.h.
  virtual runtime::GradientNorm gradient_norm(const StepWork& work) const = 0;
  virtual double clip_coefficient(double max_norm, const runtime::GradientNorm& gradient, double grad_scale) const = 0;
  virtual runtime::StepTelemetry telemetry(const std::vector<runtime::TensorSums>& tensors,
                                           double grad_scale) const = 0;
};

std::unique_ptr<const StepBackend> native_step(const KernelTable& table);
std::unique_ptr<const StepBackend> numpy_step();

}  // namespace fusedstep::bind
