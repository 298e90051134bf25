// Equations over a whole step, as reference/whole_step.py has them: clipping, what becomes of a gradient before the
// rule takes it, averages of parameters, and what telemetry makes of its sums.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/abi/table.h"
#include "runtime/ranged.h"

namespace fusedstep::runtime {

// Of all gradients together, divided by grad_scale.
struct GradientNorm {
  Ranged squares;  // before the division
  double norm = 0.0;
  double nonfinite = 0.0;  // elements that are infinite or NaN
};
// `squares` and `nonfinite` of each gradient.
GradientNorm gradient_norm(const std::vector<Ranged>& squares, const std::vector<double>& nonfinite, double grad_scale);

// What clipping multiplies the gradients by, at most 1: PyTorch's max_norm / (norm + 1e-6), whose sum keeps it from
// dividing by 0. NaN stays NaN.
double clip_coefficient(double max_norm, const GradientNorm& gradient, double grad_scale);

// What the gradient is multiplied by: the sign of `maximize`, unscaling and clipping in one.
double gradient_factor(bool maximize, double grad_scale, double clip_coefficient);

// The decay of a parameter's average in its step `step`; with warm-up the first steps weigh more.
double ema_decay(double decay, bool warmup, std::int64_t step);

// What a tensor brings to telemetry.
struct TensorSums {
  Ranged sums[kStepSums];
  double moment_sign = 1.0;  // -1 where its first moment points against the gradient
  bool averages = false;     // keeps a first moment
};
struct Telemetry {
  double grad_norm = 0.0, update_norm = 0.0, param_norm = 0.0;
  std::optional<double> update_ratio;          // none where the parameters are 0
  std::optional<double> grad_momentum_cosine;  // none where it is not a number
  double nonfinite = 0.0;
};
struct StepTelemetry {
  Telemetry whole;
  std::vector<Telemetry> tensors;
};
StepTelemetry telemetry_of(const std::vector<TensorSums>& tensors, double grad_scale);

}  // namespace fusedstep::runtime
