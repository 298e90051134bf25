// What the layouts of batch norm share: statistics, and the maths of one element.
//
// Statistics: mean and sum of squared deviations of fixed blocks, in double, two passes a block; blocks merge by
// Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
#pragma once

#include "kernels/table.h"
#include "kernels/vector.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Moments {
  double count, mean, m2;
};

inline Moments merge(Moments a, Moments b) {
  if (a.count == 0.0) return b;
  const double count = a.count + b.count;
  const double delta = b.mean - a.mean;
  return {count, a.mean + delta * (b.count / count), (a.m2 + b.m2) + (delta * delta) * (a.count * b.count / count)};
}

// The statistics of channel c for this batch, and running <- (1 - momentum) running + momentum new.
inline void take_statistics(const BatchNormArgs& a, std::int64_t c, const Moments& m) {
  a.mean[c] = m.mean;
  a.inv_std[c] = 1.0 / __builtin_sqrt(m.m2 / m.count + a.eps);
  if (!a.running_mean) return;
  const double var = m.m2 / (a.unbiased ? m.count - 1.0 : m.count);
  const double kept = 1.0 - a.momentum;
  a.running_mean[c] = float(kept * double(a.running_mean[c]) + a.momentum * m.mean);
  a.running_var[c] = float(kept * double(a.running_var[c]) + a.momentum * var);
}

// dbias and dweight from sum dy and sum dy (x - mean).
inline void take_gradients(const BatchNormBackwardArgs& a, std::int64_t c, double sum_dy, double sum_dy_d) {
  a.dbias[c] = float(sum_dy);
  a.dweight[c] = float(a.inv_std[c] * sum_dy_d);
}

template <class Args>
inline float scale_of(const Args& a, std::int64_t c) {
  return float(a.inv_std[c] * (a.weight ? double(a.weight[c]) : 1.0));
}

// x - mean to the last bit of float32, also where the mean dwarfs the deviation: the mean in two floats.
struct Centre {
  float high, rest;
  static Centre of(double mean) { return {float(mean), float(mean - double(float(mean)))}; }
  template <class T>
  FUSEDSTEP_INLINE T operator()(T x) const {
    return (x - high) - rest;
  }
};

// y = scale (x - mean) + shift
struct Affine {
  Centre centre;
  float scale, shift;
  static Affine of(const BatchNormArgs& a, std::int64_t c) {
    return {Centre::of(a.mean[c]), scale_of(a, c), a.bias ? a.bias[c] : 0.0f};
  }
  template <class T>
  FUSEDSTEP_INLINE T operator()(T x) const {
    return centre(x) * scale + shift;
  }
};

// dx = scale ((dy - offset) - slope (x - mean)); in evaluation the statistics are constants and dx = scale dy.
struct Gradient {
  Centre centre;
  float scale, offset, slope;
  static Gradient of(const BatchNormBackwardArgs& a, std::int64_t c, double sum_dy, double sum_dy_d) {
    const double count = double(a.n * a.l), inv_std = a.inv_std[c];
    return {Centre::of(a.mean[c]), scale_of(a, c), float(sum_dy / count),
            float((inv_std * inv_std) * (sum_dy_d / count))};
  }
  template <class T>
  FUSEDSTEP_INLINE T operator()(T dy, T x) const {
    return scale * ((dy - offset) - slope * centre(x));
  }
};

}  // namespace fusedstep::FUSEDSTEP_SET
