// Batch normalization of planes (N, C, L), float32: one channel at a time, so that every pass but the first finds it in
// the cache.
#pragma once

#include "kernels/statistics.h"

namespace fusedstep::FUSEDSTEP_SET {

inline constexpr std::int64_t kStatsBlock = 8192;  // elements of a channel's block, 32 KiB

// Fetches a cache line of the next plane while this one is worked on.
FUSEDSTEP_INLINE void fetch(const float* p) { __builtin_prefetch(p, 0, 2); }

// One block of a channel: `planes` runs of l values, `pitch` apart.
inline Moments plane_moments(const float* x, std::int64_t planes, std::int64_t pitch, std::int64_t l) {
  LaneSum sum;
  for (std::int64_t k = 0; k < planes; ++k) {
    const float* plane = x + k * pitch;
    each_half(l, [&](std::int64_t i, std::int64_t n, int half) FUSEDSTEP_LAMBDA {
      fetch(plane + pitch + i);
      sum.half[half] += load_wide(plane + i, n);
    });
  }
  const double count = double(planes * l);
  const double mean = sum.total() / count;
  LaneSum squares;
  for (std::int64_t k = 0; k < planes; ++k) {
    const float* plane = x + k * pitch;
    each_half(l, [&](std::int64_t i, std::int64_t n, int half) FUSEDSTEP_LAMBDA {
      const Wide d = first(load_wide(plane + i, n) - mean, n);
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
      take_statistics(a, c, channel_moments(a.x + c * a.l, a.n, pitch, a.l));
    }
    const Affine affine = Affine::of(a, c);
    for (std::int64_t k = 0; k < a.n; ++k) {
      const float* x = a.x + k * pitch + c * a.l;
      write_lanes(a.y + k * pitch + c * a.l, a.l, a.stream,
                  [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA { return affine(load(x + i, n)); });
    }
  }
  if (a.stream) end_stream();
}

inline void batch_norm_planes_backward(const BatchNormBackwardArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t pitch = a.c * a.l;
  for (std::int64_t c = begin; c < end; ++c) {
    const double mean = a.mean[c];
    LaneSum sum_dy, sum_dy_d;
    for (std::int64_t k = 0; k < a.n; ++k) {
      const float* x = a.x + k * pitch + c * a.l;
      const float* dy = a.dy + k * pitch + c * a.l;
      each_half(a.l, [&](std::int64_t i, std::int64_t n, int half) FUSEDSTEP_LAMBDA {
        fetch(dy + pitch + i);
        fetch(x + pitch + i);
        const Wide g = load_wide(dy + i, n);
        sum_dy.half[half] += g;
        sum_dy_d.half[half] += g * first(load_wide(x + i, n) - mean, n);
      });
    }
    const double total_dy = sum_dy.total(), total_dy_d = sum_dy_d.total();
    take_gradients(a, c, total_dy, total_dy_d);
    const Gradient gradient = Gradient::of(a, c, total_dy, total_dy_d);
    for (std::int64_t k = 0; k < a.n; ++k) {
      const float* x = a.x + k * pitch + c * a.l;
      const float* dy = a.dy + k * pitch + c * a.l;
      float* dx = a.dx + k * pitch + c * a.l;
      if (a.training) {
        write_lanes(dx, a.l, a.stream, [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA {
          return gradient(load(dy + i, n), load(x + i, n));
        });
      } else {
        write_lanes(dx, a.l, a.stream,
                    [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA { return gradient.scale * load(dy + i, n); });
      }
    }
  }
  if (a.stream) end_stream();
}

}  // namespace fusedstep::FUSEDSTEP_SET
