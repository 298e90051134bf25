// Batch normalization of rows (N, C), float32: memory is read in order, the channels across the lanes. Blocks of rows
// are shared out, their sums kept in the workspace; the channels then merge the blocks in order.
#pragma once

#include "kernels/statistics.h"

namespace fusedstep::FUSEDSTEP_SET {

// sums[j] += term(row, j) for every row, row after row; four rows at a time, so that a sum is loaded and stored once.
template <class Term>
inline void add_rows(double* sums, std::int64_t rows, std::int64_t c, Term term) {
  std::int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
#pragma omp simd
    for (std::int64_t j = 0; j < c; ++j) {
      sums[j] = (((sums[j] + term(r, j)) + term(r + 1, j)) + term(r + 2, j)) + term(r + 3, j);
    }
  }
  for (; r < rows; ++r) {
#pragma omp simd
    for (std::int64_t j = 0; j < c; ++j) sums[j] += term(r, j);
  }
}

inline std::int64_t rows_in_block(std::int64_t n, std::int64_t block) {
  const std::int64_t left = n - block * kStatsRows;
  return left < kStatsRows ? left : kStatsRows;
}

// Workspace: per block c means, then c sums of squared deviations. It comes zeroed.
inline void batch_norm_rows_moments(const BatchNormArgs& a, double* workspace, std::int64_t begin, std::int64_t end) {
  const std::int64_t c = a.c;
  for (std::int64_t block = begin; block < end; ++block) {
    const std::int64_t rows = rows_in_block(a.n, block);
    const float* x = a.x + block * kStatsRows * c;
    double* mean = workspace + block * 2 * c;
    double* m2 = mean + c;
    add_rows(mean, rows, c, [&](std::int64_t r, std::int64_t j) FUSEDSTEP_LAMBDA { return double(x[r * c + j]); });
    for (std::int64_t j = 0; j < c; ++j) mean[j] /= double(rows);
    add_rows(m2, rows, c, [&](std::int64_t r, std::int64_t j) FUSEDSTEP_LAMBDA {
      const double d = double(x[r * c + j]) - mean[j];
      return d * d;
    });
  }
}

// Merges the blocks in order into the first one, and takes the statistics from it.
inline void batch_norm_rows_statistics(const BatchNormArgs& a, double* workspace) {
  double *mean = workspace, *m2 = workspace + a.c;
  double count = double(rows_in_block(a.n, 0));
  for (std::int64_t block = 1; block * kStatsRows < a.n; ++block) {
    const double* of_block = workspace + block * 2 * a.c;
    const double block_count = double(rows_in_block(a.n, block));
#pragma omp simd
    for (std::int64_t j = 0; j < a.c; ++j) {
      const Moments all = merge({count, mean[j], m2[j]}, {block_count, of_block[j], of_block[a.c + j]});
      mean[j] = all.mean;
      m2[j] = all.m2;
    }
    count += block_count;
  }
  for (std::int64_t j = 0; j < a.c; ++j) take_statistics(a, j, {count, mean[j], m2[j]});
}

// Channels whose coefficients are laid out in arrays at a time.
inline constexpr std::int64_t kChannels = 256;

inline void batch_norm_rows_apply(const BatchNormArgs& a, std::int64_t begin, std::int64_t end) {
  alignas(64) float high[kChannels], rest[kChannels], scale[kChannels], shift[kChannels];
  for (std::int64_t c0 = 0; c0 < a.c; c0 += kChannels) {
    const std::int64_t width = a.c - c0 < kChannels ? a.c - c0 : kChannels;
    for (std::int64_t j = 0; j < width; ++j) {
      const Affine affine = Affine::of(a, c0 + j);
      high[j] = affine.centre.high;
      rest[j] = affine.centre.rest;
      scale[j] = affine.scale;
      shift[j] = affine.shift;
    }
    for (std::int64_t r = begin; r < end; ++r) {
      const float* x = a.x + r * a.c + c0;
      float* y = a.y + r * a.c + c0;
#pragma omp simd
      for (std::int64_t j = 0; j < width; ++j) y[j] = Affine{{high[j], rest[j]}, scale[j], shift[j]}(x[j]);
    }
  }
}

// Workspace: per block c sums of dy, then c sums of dy (x - mean). It comes zeroed.
inline void batch_norm_rows_sums(const BatchNormBackwardArgs& a, double* workspace, std::int64_t begin,
                                 std::int64_t end) {
  const std::int64_t c = a.c;
  for (std::int64_t block = begin; block < end; ++block) {
    const std::int64_t rows = rows_in_block(a.n, block);
    const float* x = a.x + block * kStatsRows * c;
    const float* dy = a.dy + block * kStatsRows * c;
    double* sum_dy = workspace + block * 2 * c;
    add_rows(sum_dy, rows, c, [&](std::int64_t r, std::int64_t j) FUSEDSTEP_LAMBDA { return double(dy[r * c + j]); });
    add_rows(sum_dy + c, rows, c, [&](std::int64_t r, std::int64_t j) FUSEDSTEP_LAMBDA {
      return double(dy[r * c + j]) * (double(x[r * c + j]) - a.mean[j]);
    });
  }
}

// Adds the blocks in order into the first one, and takes the gradients of weight and bias from it.
inline void batch_norm_rows_total(const BatchNormBackwardArgs& a, double* workspace) {
  for (std::int64_t block = 1; block * kStatsRows < a.n; ++block) {
    const double* of_block = workspace + block * 2 * a.c;
#pragma omp simd
    for (std::int64_t j = 0; j < 2 * a.c; ++j) workspace[j] += of_block[j];
  }
  for (std::int64_t j = 0; j < a.c; ++j) take_gradients(a, j, workspace[j], workspace[a.c + j]);
}

inline void batch_norm_rows_gradient(const BatchNormBackwardArgs& a, const double* total, std::int64_t begin,
                                     std::int64_t end) {
  alignas(64) float high[kChannels], rest[kChannels], scale[kChannels], offset[kChannels], slope[kChannels];
  for (std::int64_t c0 = 0; c0 < a.c; c0 += kChannels) {
    const std::int64_t width = a.c - c0 < kChannels ? a.c - c0 : kChannels;
    for (std::int64_t j = 0; j < width; ++j) {
      const Gradient gradient = Gradient::of(a, c0 + j, total[c0 + j], total[a.c + c0 + j]);
      high[j] = gradient.centre.high;
      rest[j] = gradient.centre.rest;
      scale[j] = gradient.scale;
      offset[j] = gradient.offset;
      slope[j] = gradient.slope;
    }
    for (std::int64_t r = begin; r < end; ++r) {
      const float* x = a.x + r * a.c + c0;
      const float* dy = a.dy + r * a.c + c0;
      float* dx = a.dx + r * a.c + c0;
      if (a.training) {
#pragma omp simd
        for (std::int64_t j = 0; j < width; ++j) {
          dx[j] = Gradient{{high[j], rest[j]}, scale[j], offset[j], slope[j]}(dy[j], x[j]);
        }
      } else {
#pragma omp simd
        for (std::int64_t j = 0; j < width; ++j) dx[j] = scale[j] * dy[j];
      }
    }
  }
}

}  // namespace fusedstep::FUSEDSTEP_SET
