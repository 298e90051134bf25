#include "runtime/batch_norm_channels.h"

#include <algorithm>
#include <cmath>

namespace fusedstep::runtime {

double inverse_deviation(double m2, double count, double eps) { return 1.0 / std::sqrt(m2 / count + eps); }

void channel_scale(const double* inv_std, const double* weight, double* scale, std::int64_t channels) {
  for (std::int64_t c = 0; c < channels; ++c) scale[c] = inv_std[c] * (weight == nullptr ? 1.0 : weight[c]);
}

bool takes_batch(const RunningUpdate& update, const BatchMoments& batch, std::int64_t channels) {
  if (!update.skip_nonfinite) return true;
  const auto finite = [](double value) { return std::isfinite(value); };
  return std::all_of(batch.mean, batch.mean + channels, finite) && std::all_of(batch.m2, batch.m2 + channels, finite);
}

void update_running(const RunningStatistics& running, const BatchMoments& batch, const RunningUpdate& update,
                    std::int64_t channels) {
  const double kept = 1.0 - update.momentum, divisor = update.unbiased ? batch.count - 1.0 : batch.count;
  for (std::int64_t c = 0; c < channels; ++c) {
    const double var = batch.m2[c] / divisor;
    running.mean.set(c, kept * running.mean[c] + update.momentum * batch.mean[c]);
    running.var.set(c, kept * running.var[c] + update.momentum * var);
  }
}

void parameter_gradients(const double* inv_std, const double* sum_dy, const double* sum_dy_d, ChannelArray dweight,
                         ChannelArray dbias, std::int64_t channels) {
  for (std::int64_t c = 0; c < channels; ++c) {
    dweight.set(c, inv_std[c] * sum_dy_d[c]);
    dbias.set(c, sum_dy[c]);
  }
}

}  // namespace fusedstep::runtime
