// Batch norm's equations of one number a channel. reference/batch_norm.py spells out the same.
#pragma once

#include "kernels/abi/table.h"

namespace fusedstep::runtime {

// Numbers of the channels as a caller stores them, in float32 or float64.
class ChannelArray {
 public:
  ChannelArray() = default;
  ChannelArray(void* data, Dtype dtype) : data_(data), dtype_(dtype) {}
  void* data() const { return data_; }
  double operator[](std::int64_t c) const {
    return dtype_ == Dtype::float32 ? double(static_cast<const float*>(data_)[c])
                                    : static_cast<const double*>(data_)[c];
  }
  void set(std::int64_t c, double value) const {
    if (dtype_ == Dtype::float32) {
      static_cast<float*>(data_)[c] = float(value);
    } else {
      static_cast<double*>(data_)[c] = value;
    }
  }

 private:
  void* data_ = nullptr;
  Dtype dtype_ = Dtype::float64;
};

// Statistics of `count` values of each channel.
struct BatchMoments {
  double count;
  const double* mean;
  const double* m2;  // sums of squared deviations
};

struct RunningStatistics {
  ChannelArray mean, var;
};

struct RunningUpdate {
  double momentum;
  bool unbiased;        // the running variance takes m2 / (count - 1)
  bool skip_nonfinite;  // a batch with NaN or infinity is left out
};

// 1 / sqrt(m2 / count + eps). In evaluation m2 is the running variance, and the count is 1.
double inverse_deviation(double m2, double count, double eps);
// scale = inv_std * weight; a null weight is 1.
void channel_scale(const double* inv_std, const double* weight, double* scale, std::int64_t channels);

bool takes_batch(const RunningUpdate& update, const BatchMoments& batch, std::int64_t channels);
// running <- (1 - momentum) running + momentum batch.
void update_running(const RunningStatistics& running, const BatchMoments& batch, const RunningUpdate& update,
                    std::int64_t channels);

// dweight = inv_std * sum_dy_d, dbias = sum_dy.
void parameter_gradients(const double* inv_std, const double* sum_dy, const double* sum_dy_d, ChannelArray dweight,
                         ChannelArray dbias, std::int64_t channels);

}  // namespace fusedstep::runtime
