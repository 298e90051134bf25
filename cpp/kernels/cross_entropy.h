// Softmax cross-entropy of rows of logits z with label y: loss log(sum_j e^(z_j - m)) - (z_y - m), m = max z;
// gradient (softmax(z) - onehot(y)) * scale.
#pragma once

#include "kernels/explog.h"
#include "kernels/table.h"

namespace fusedstep::FUSEDSTEP_SET {

inline void cross_entropy(const CrossEntropyArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t classes = a.classes;
  for (std::int64_t row = begin; row < end; ++row) {
    const float* z = a.logits + row * classes;
    float* dz = a.dlogits + row * classes;
    const std::int64_t label = a.labels[row];

    const float least = -__builtin_inff();
    Floats lane_max = Floats{} + least;
    std::int64_t j = 0;
    for (; j + kLanes <= classes; j += kLanes) {
      const Floats v = load(z + j);
      lane_max = v > lane_max ? v : lane_max;
    }
    float max = least;
    for (int k = 0; k < kLanes; ++k) max = lane_max[k] > max ? lane_max[k] : max;
    for (; j < classes; ++j) max = z[j] > max ? z[j] : max;

    // dz may be z: the label's logit is read before it is overwritten.
    const double label_logit = double(z[label]) - double(max);
    LaneSum sum;
    each_half(classes, [&](std::int64_t i, std::int64_t n, int half) FUSEDSTEP_LAMBDA {
      const Floats e = exponential(load(z + i, n) - max);
      store(dz + i, e, n);
      sum.half[half] += first(widen(e), n);
    });
    const double total = sum.total();
    // The largest logit adds 1; less is NaN.
    a.losses[row] = total >= 1.0 ? logarithm(total) - label_logit : total;

    const float factor = float(a.scale / total);
    each_lanes(classes,
               [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA { store(dz + i, load(dz + i, n) * factor, n); });
    dz[label] -= float(a.scale);
  }
}

// In 32 lanes, as every sum here.
inline double sum(const double* x, std::int64_t n) {
  double lane[2 * kLanes] = {};
  for (std::int64_t i = 0; i < n; ++i) lane[i % (2 * kLanes)] += x[i];
  LaneSum lanes;
  __builtin_memcpy(&lanes, lane, sizeof lane);
  return lanes.total();
}

}  // namespace fusedstep::FUSEDSTEP_SET
