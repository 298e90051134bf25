// Batch norm: its blocks, and what its passes take.
#pragma once

#include <cstdint>

#include "kernels/abi/dtype.h"

namespace fusedstep {

// Batch norm sees every dense array as (n, c, l) in memory. Rows: l is 1, the channels are contiguous. Planes: n * c
// runs of l values of a channel.
enum Layout { kPlanes, kRows };
inline constexpr int kLayouts = 2;

// Values of a channel whose sums are taken together: whole planes, or a part of one.
inline constexpr std::int64_t kPlanesBlock = 8192;
constexpr std::int64_t plane_parts(std::int64_t l) {
  return l >= kPlanesBlock ? (l + kPlanesBlock - 1) / kPlanesBlock : 1;
}
constexpr std::int64_t plane_blocks(std::int64_t n, std::int64_t l) {
  if (l >= kPlanesBlock) return n * plane_parts(l);
  const std::int64_t planes = kPlanesBlock / l;
  return (n + planes - 1) / planes;
}
// Rows of few channels are summed several at a time, as one wide row of at least so many values.
inline constexpr std::int64_t kLeastWidth = 64;
constexpr std::int64_t row_width(std::int64_t c) { return (kLeastWidth + c - 1) / c * c; }
// Wide rows whose sums are taken together.
constexpr std::int64_t block_rows(std::int64_t width) { return width >= 256 ? 128 : 32768 / width; }
constexpr std::int64_t row_blocks(std::int64_t n, std::int64_t c) {
  const std::int64_t values = block_rows(row_width(c)) * row_width(c);
  return (n * c + values - 1) / values;
}
// For rows, an array with one entry a channel is repeated, so that 16 entries can be read from any place of a wide row.
inline constexpr std::int64_t kPadding = 16;
constexpr std::int64_t padded_width(std::int64_t c) { return row_width(c) + kPadding; }

// Doubles that the sums of all blocks take.
constexpr std::int64_t plane_workspace(std::int64_t n, std::int64_t c, std::int64_t l, bool exact) {
  return plane_blocks(n, l) * c * 2 * (exact ? 2 : 1);
}
constexpr std::int64_t row_workspace(std::int64_t n, std::int64_t c, bool exact) {
  return (row_blocks(n, c) * (exact ? 2 : 1) + 2) * 2 * padded_width(c);
}

// Words of the mask of a run of values: one bit each.
constexpr std::int64_t mask_words(std::int64_t l) { return (l + 15) / 16; }

struct BatchNormArgs {
  std::int64_t n, c, l;
  const void* x;
  const void* residual;  // null: none
  void* y;
  std::uint16_t* mask;   // null: no relu; else which values pass
  const double* weight;  // null: 1
  const double* bias;    // null: 0
  double* mean;          // of the batch in training, else taken as given
  double* inv_std;       // likewise
  double* m2;            // sums of squared deviations
  double* mean_low;      // null, or the part of the mean below its last bit
  double* m2_low;        // likewise
  double* pivot;         // subtracted from the values before they are summed; for rows, repeated
  double eps;
  bool folded;  // y = scale x + shift
  bool stream;  // write past the cache
};

struct BatchNormGradientArgs {
  std::int64_t n, c, l;
  const void* x;
  const void* dy;
  const std::uint16_t* mask;  // null: no relu
  const double* scale;        // weight * inv_std
  const double* mean;         // for rows, repeated
  const double* inv_std;
  double* sum_dy;
  double* sum_dy_d;  // of dy (x - mean)
  void* dx;
  void* dresidual;  // null: not wanted
  double count;     // values a channel, over all workers
  bool training;    // false: mean and inv_std were constants
  bool stream;
};

// Of one layout and stored dtype. Sums are shared out over threads by blocks, of each channel of planes, or of rows.
// Writing is shared out by planes (parts of large ones), or by chunks of kChunk values of rows. [exact]: with twice the
// precision of double, and twice the workspace.
struct BatchNormKernels {
  void (*pivots)(const BatchNormArgs&);
  void (*moments[2])(const BatchNormArgs&, double* workspace, std::int64_t begin, std::int64_t end);
  void (*statistics[2])(const BatchNormArgs&, double* workspace);
  // What `apply` needs: kCoefficients arrays, of c entries for planes, of padded_width(c) for rows.
  void (*coefficients)(const BatchNormArgs&, void* coefficients);
  void (*apply)(const BatchNormArgs&, const void* coefficients, std::int64_t begin, std::int64_t end);

  void (*gradient_sums)(const BatchNormGradientArgs&, double* workspace, std::int64_t begin, std::int64_t end);
  void (*gradient_totals)(const BatchNormGradientArgs&, double* workspace);
  void (*gradient_coefficients)(const BatchNormGradientArgs&, void* coefficients);
  void (*gradient)(const BatchNormGradientArgs&, const void* coefficients, std::int64_t begin, std::int64_t end);

  // Planes only: all of it for channels [begin, end), one after the other, so that every pass but the first finds the
  // channel in the cache.
  void (*forward)(const BatchNormArgs&, std::int64_t begin, std::int64_t end);
  void (*backward)(const BatchNormGradientArgs&, std::int64_t begin, std::int64_t end);
};
inline constexpr int kCoefficients = 5;

}  // namespace fusedstep
