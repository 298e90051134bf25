#include "runtime/whole_step.h"

#include <algorithm>
#include <cmath>

namespace fusedstep::runtime {
namespace {

// `averaged` are the gradient's squares, of the tensors that keep an average of it.
Telemetry telemetry_of_sums(const Ranged (&sums)[kStepSums], const Ranged& averaged, double grad_scale,
                            double moment_sign) {
  const Ranged &update = sums[kUpdateSquares], &param = sums[kParamSquares];
  Telemetry made;
  made.grad_norm = root_of(sums[kGradSquares], grad_scale);
  made.update_norm = root_of(update);
  made.param_norm = root_of(param);
  made.nonfinite = sums[kNonFinite].value;
  if (param.value > 0.0) {
    const double ratio = std::sqrt(update.value) / std::sqrt(param.value);
    made.update_ratio = std::ldexp(ratio, (update.exponent - param.exponent) / 2);
  }
  const Ranged &cross = sums[kGradMoment], &moment = sums[kMomentSquares];
  const double norms = std::sqrt(averaged.value) * std::sqrt(moment.value);
  const double cosine =
      std::ldexp(moment_sign * cross.value / norms, cross.exponent - (averaged.exponent + moment.exponent) / 2);
  if (norms > 0.0 && std::isfinite(cosine)) made.grad_momentum_cosine = std::clamp(cosine, -1.0, 1.0);
  return made;
}

}  // namespace

GradientNorm gradient_norm(const std::vector<Ranged>& squares, const std::vector<double>& nonfinite,
                           double grad_scale) {
  GradientNorm all;
  all.squares = total_of(squares);
  all.norm = root_of(all.squares, grad_scale);
  for (const double count : nonfinite) all.nonfinite += count;
  return all;
}

double clip_coefficient(double max_norm, const GradientNorm& gradient, double grad_scale) {
  const Ranged& squares = gradient.squares;
  double coefficient = max_norm / (gradient.norm + 1e-6);
  // The norm is beyond doubles, its root at the scale of the sum is not.
  if (std::isinf(gradient.norm) && std::isfinite(squares.value)) {
    coefficient = std::ldexp(max_norm / (std::sqrt(squares.value) / grad_scale), -squares.exponent / 2);
  }
  return coefficient > 1.0 ? 1.0 : coefficient;
}

double gradient_factor(bool maximize, double grad_scale, double clip_coefficient) {
  return (maximize ? -1.0 : 1.0) / grad_scale * clip_coefficient;
}

double ema_decay(double decay, bool warmup, std::int64_t step) {
  return warmup ? std::min(decay, (1.0 + double(step)) / (10.0 + double(step))) : decay;
}

StepTelemetry telemetry_of(const std::vector<TensorSums>& tensors, double grad_scale) {
  StepTelemetry made;
  std::vector<Ranged> parts[kStepSums], averaged;
  for (const TensorSums& tensor : tensors) {
    for (int s = 0; s < kStepSums; ++s) parts[s].push_back(tensor.sums[s]);
    parts[kGradMoment].back().value *= tensor.moment_sign;
    if (tensor.averages) averaged.push_back(tensor.sums[kGradSquares]);
    made.tensors.push_back(telemetry_of_sums(tensor.sums, tensor.sums[kGradSquares], grad_scale, tensor.moment_sign));
  }
  Ranged all[kStepSums];
  for (int s = 0; s < kStepSums; ++s) all[s] = total_of(parts[s]);
  made.whole = telemetry_of_sums(all, total_of(averaged), grad_scale, 1.0);
  return made;
}

}  // namespace fusedstep::runtime
