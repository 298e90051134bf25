// Batch normalization, float32. Planes (N, C, L): one channel at a time, so that every pass but the first finds it in
// the cache. Rows (N, C): a stripe of channels across the lanes.
//
// Statistics: mean and sum of squared deviations of fixed blocks, in double, two passes a block; blocks merge by
// Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
#pragma once

#include "kernels/table.h"
#include "kernels/vector.h"

namespace fusedstep::FUSEDSTEP_SET {

inline constexpr std::int64_t kStatsBlock = 8192;    // elements of a channel's block, 32 KiB
inline constexpr std::int64_t kStatsRows = 256;      // rows of a block of rows
inline constexpr std::int64_t kStripe = 2 * kLanes;  // channels across the lanes

struct Moments {
  double count, mean, m2;
};

FUSEDSTEP_INLINE Moments merge(Moments a, Moments b) {
  if (a.count == 0.0) return b;
  const double count = a.count + b.count;
  const double delta = b.mean - a.mean;
  return {count, a.mean + delta * (b.count / count), (a.m2 + b.m2) + (delta * delta) * (a.count * b.count / count)};
}

// x - mean to the last bit of float32, also where the mean dwarfs the deviation: the mean in two floats.
struct Centre {
  float high, rest;
  explicit Centre(double mean) : high(float(mean)), rest(float(mean - double(high))) {}
  FUSEDSTEP_INLINE Floats operator()(Floats x) const { return (x - high) - rest; }
};

// What turns a centred value into the output: scale * (x - mean) + shift.
struct Affine {
  float scale, shift;
  Affine(double inv_std, const float* weight, const float* bias, std::int64_t c)
      : scale(float(inv_std * (weight ? double(weight[c]) : 1.0))), shift(bias ? bias[c] : 0.0f) {}
};

inline double inverse_std(const Moments& m, double eps) { return 1.0 / __builtin_sqrt(m.m2 / m.count + eps); }

// running <- (1 - momentum) running + momentum new
inline void update_running(const BatchNormArgs& a, std::int64_t c, const Moments& m) {
  if (!a.running_mean) return;
  const double var = m.m2 / (a.unbiased ? m.count - 1.0 : m.count);
  const double kept = 1.0 - a.momentum;
  a.running_mean[c] = float(kept * double(a.running_mean[c]) + a.momentum * m.mean);
  a.running_var[c] = float(kept * double(a.running_var[c]) + a.momentum * var);
}

// One block of a channel: `planes` runs of l values, `pitch` apart.
inline Moments plane_moments(const float* x, std::int64_t planes, std::int64_t pitch, std::int64_t l) {
  LaneSum sum;
  for (std::int64_t k = 0; k < planes; ++k) {
    const float* plane = x + k * pitch;
    each_half(l, [&](std::int64_t i, std::int64_t n, int half) FUSEDSTEP_LAMBDA {
      sum.half[half] += widen(load(plane + i, n));
    });
  }
  const double count = double(planes * l);
  const double mean = sum.total() / count;
  LaneSum squares;
  for (std::int64_t k = 0; k < planes; ++k) {
    const float* plane = x + k * pitch;
    each_half(l, [&](std::int64_t i, std::int64_t n, int half) FUSEDSTEP_LAMBDA {
      const Wide d = first(widen(load(plane + i, n)) - mean, n);
      squares.half[half] += d * d;
    });
  }
  return {count, mean, squares.total()};
}

inline Moments channel_moments(const float* x, std::int64_t n, std::int64_t pitch, std::int64_t l) {
  Moments all = {0.0, 0.0, 0.0};
  if (l >= kStatsBlock) {
    for (std::int64_t k = 0; k < n; ++k) {
      for (std::int64_t i = 0; i < l; i += kStatsBlock) {
        all = merge(all, plane_moments(x + k * pitch + i, 1, pitch, l - i < kStatsBlock ? l - i : kStatsBlock));
      }
    }
    return all;
  }
  const std::int64_t planes = kStatsBlock / l;
  for (std::int64_t k = 0; k < n; k += planes) {
    all = merge(all, plane_moments(x + k * pitch, n - k < planes ? n - k : planes, pitch, l));
  }
  return all;
}

inline void batch_norm_planes(const BatchNormArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t pitch = a.c * a.l;
  for (std::int64_t c = begin; c < end; ++c) {
    if (a.training) {
      const Moments m = channel_moments(a.x + c * a.l, a.n, pitch, a.l);
      a.mean[c] = m.mean;
      a.inv_std[c] = inverse_std(m, a.eps);
      update_running(a, c, m);
    }
    const Centre centre(a.mean[c]);
    const Affine affine(a.inv_std[c], a.weight, a.bias, c);
    for (std::int64_t k = 0; k < a.n; ++k) {
      const float* x = a.x + k * pitch + c * a.l;
      write_lanes(a.y + k * pitch + c * a.l, a.l, a.stream, [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA {
        return centre(load(x + i, n)) * affine.scale + affine.shift;
      });
    }
  }
  if (a.stream) end_stream();
}

// dx = scale (dy - offset - slope (x - mean)); in evaluation the statistics are constants and dx = scale dy.
struct Gradient {
  float scale, offset, slope;
  Gradient(const BatchNormBackwardArgs& a, std::int64_t c, double sum_dy, double sum_dy_d) {
    const double count = double(a.n * a.l), inv_std = a.inv_std[c];
    scale = float(inv_std * (a.weight ? double(a.weight[c]) : 1.0));
    offset = float(sum_dy / count);
    slope = float((inv_std * inv_std) * (sum_dy_d / count));
    a.dbias[c] = float(sum_dy);
    a.dweight[c] = float(inv_std * sum_dy_d);
  }
};

inline void batch_norm_planes_backward(const BatchNormBackwardArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t pitch = a.c * a.l;
  for (std::int64_t c = begin; c < end; ++c) {
    const Centre centre(a.mean[c]);
    LaneSum sum_dy, sum_dy_d;
    for (std::int64_t k = 0; k < a.n; ++k) {
      const float* x = a.x + k * pitch + c * a.l;
      const float* dy = a.dy + k * pitch + c * a.l;
      each_half(a.l, [&](std::int64_t i, std::int64_t n, int half) FUSEDSTEP_LAMBDA {
        const Wide g = widen(load(dy + i, n));
        sum_dy.half[half] += g;
        sum_dy_d.half[half] += g * widen(centre(load(x + i, n)));
      });
    }
    const Gradient gradient(a, c, sum_dy.total(), sum_dy_d.total());
    for (std::int64_t k = 0; k < a.n; ++k) {
      const float* x = a.x + k * pitch + c * a.l;
      const float* dy = a.dy + k * pitch + c * a.l;
      float* dx = a.dx + k * pitch + c * a.l;
      if (a.training) {
        write_lanes(dx, a.l, a.stream, [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA {
          return gradient.scale *
                 ((load(dy + i, n) - gradient.offset) - gradient.slope * centre(load(x + i, n)));
        });
      } else {
        write_lanes(dx, a.l, a.stream,
                    [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA { return gradient.scale * load(dy + i, n); });
      }
    }
  }
  if (a.stream) end_stream();
}

// Rows: a stripe of at most kStripe channels, one scalar accumulator a channel; the compiler puts them into vectors.
inline void stripe_moments(const float* x, std::int64_t n, std::int64_t pitch, std::int64_t width, Moments* all) {
  for (std::int64_t j = 0; j < width; ++j) all[j] = {0.0, 0.0, 0.0};
  for (std::int64_t at = 0; at < n; at += kStatsRows) {
    const std::int64_t rows = n - at < kStatsRows ? n - at : kStatsRows;
    const float* block = x + at * pitch;
    alignas(64) double mean[kStripe] = {}, m2[kStripe] = {};
    for (std::int64_t r = 0; r < rows; ++r) {
#pragma omp simd
      for (std::int64_t j = 0; j < width; ++j) mean[j] += double(block[r * pitch + j]);
    }
    for (std::int64_t j = 0; j < width; ++j) mean[j] /= double(rows);
    for (std::int64_t r = 0; r < rows; ++r) {
#pragma omp simd
      for (std::int64_t j = 0; j < width; ++j) {
        const double d = double(block[r * pitch + j]) - mean[j];
        m2[j] += d * d;
      }
    }
    for (std::int64_t j = 0; j < width; ++j) all[j] = merge(all[j], {double(rows), mean[j], m2[j]});
  }
}

inline void batch_norm_rows(const BatchNormArgs& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t c0 = begin; c0 < end; c0 += kStripe) {
    const std::int64_t width = end - c0 < kStripe ? end - c0 : kStripe;
    if (a.training) {
      Moments m[kStripe];
      stripe_moments(a.x + c0, a.n, a.c, width, m);
      for (std::int64_t j = 0; j < width; ++j) {
        a.mean[c0 + j] = m[j].mean;
        a.inv_std[c0 + j] = inverse_std(m[j], a.eps);
        update_running(a, c0 + j, m[j]);
      }
    }
    alignas(64) float high[kStripe], rest[kStripe], scale[kStripe], shift[kStripe];
    for (std::int64_t j = 0; j < width; ++j) {
      const Centre centre(a.mean[c0 + j]);
      const Affine affine(a.inv_std[c0 + j], a.weight, a.bias, c0 + j);
      high[j] = centre.high;
      rest[j] = centre.rest;
      scale[j] = affine.scale;
      shift[j] = affine.shift;
    }
    for (std::int64_t k = 0; k < a.n; ++k) {
      const float* x = a.x + k * a.c + c0;
      float* y = a.y + k * a.c + c0;
#pragma omp simd
      for (std::int64_t j = 0; j < width; ++j) y[j] = ((x[j] - high[j]) - rest[j]) * scale[j] + shift[j];
    }
  }
}

inline void batch_norm_rows_backward(const BatchNormBackwardArgs& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t c0 = begin; c0 < end; c0 += kStripe) {
    const std::int64_t width = end - c0 < kStripe ? end - c0 : kStripe;
    alignas(64) float high[kStripe], rest[kStripe], scale[kStripe], offset[kStripe], slope[kStripe];
    for (std::int64_t j = 0; j < width; ++j) {
      const Centre centre(a.mean[c0 + j]);
      high[j] = centre.high;
      rest[j] = centre.rest;
    }
    alignas(64) double sum_dy[kStripe] = {}, sum_dy_d[kStripe] = {};
    for (std::int64_t k = 0; k < a.n; ++k) {
      const float* x = a.x + k * a.c + c0;
      const float* dy = a.dy + k * a.c + c0;
#pragma omp simd
      for (std::int64_t j = 0; j < width; ++j) {
        sum_dy[j] += double(dy[j]);
        sum_dy_d[j] += double(dy[j]) * double((x[j] - high[j]) - rest[j]);
      }
    }
    for (std::int64_t j = 0; j < width; ++j) {
      const Gradient gradient(a, c0 + j, sum_dy[j], sum_dy_d[j]);
      scale[j] = gradient.scale;
      offset[j] = gradient.offset;
      slope[j] = gradient.slope;
    }
    for (std::int64_t k = 0; k < a.n; ++k) {
      const float* x = a.x + k * a.c + c0;
      const float* dy = a.dy + k * a.c + c0;
      float* dx = a.dx + k * a.c + c0;
      if (a.training) {
#pragma omp simd
        for (std::int64_t j = 0; j < width; ++j) {
          dx[j] = scale[j] * ((dy[j] - offset[j]) - slope[j] * ((x[j] - high[j]) - rest[j]));
        }
      } else {
#pragma omp simd
        for (std::int64_t j = 0; j < width; ++j) dx[j] = scale[j] * dy[j];
      }
    }
  }
}

}  // namespace fusedstep::FUSEDSTEP_SET
