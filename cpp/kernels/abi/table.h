// What crosses between the instruction sets and the rest: plain structs and function pointers, nothing else.
#pragma once

#include <cstdint>

#include "rules/rule.h"

namespace fusedstep {

// Blocks sit in the first-level cache; sums are taken of chunks. Neither depends on the number of threads.
inline constexpr std::int64_t kBlock = 1024;
inline constexpr std::int64_t kChunk = 4 * kBlock;

inline constexpr int kMaxRules = 64;

// What is stored, and, the first ones, what is computed in; the last ones are codes of states.
enum class Dtype { float32, float64, float16, bfloat16, signed8, unsigned8 };
inline constexpr int kDtypes = 4;
inline constexpr int kMathsDtypes = 2;
constexpr Dtype maths_dtype(Dtype stored) { return stored == Dtype::float64 ? Dtype::float64 : Dtype::float32; }
constexpr bool is_code(Dtype dtype) { return dtype >= Dtype::signed8; }
constexpr std::int64_t item_bytes(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : is_code(dtype) ? 1 : 2;
}

// Elements of 8 bits that share a scale; a block is so many of these.
inline constexpr std::int64_t kScaled = 256;
constexpr std::int64_t scales_of(std::int64_t elements) { return (elements + kScaled - 1) / kScaled; }

// Elements that sums look at together.
inline constexpr std::int64_t kStrip = 256;

// Sums that a pass over a tensor gives, in this order.
enum StepSum { kGradSquares, kNonFinite, kUpdateSquares, kParamSquares, kGradMoment, kMomentSquares, kStepSums };
// Of a rule's measure, which writes pairs of factors.
inline constexpr int kMaxMeasures = 2;

// A rule on n elements; `scale` is of the cautious mask. It may look ahead in memory, but not from `reach` elements on:
// what lies before is soon this thread's.
using UpdateLoop = void (*)(const void* coefficients, double scale, const void* grad, void* param, void* const* states,
                            std::int64_t n, std::int64_t reach);
// The same for a strip of float32 whose states are all stored in one way, each as a FusedState: it decodes them, and
// encodes those of the strip before.
using FusedLoop = void (*)(const void* coefficients, double scale, const void* grad, void* param, void* states);
enum Fused { kFused8bit, kFusedBfloat16, kFusedWays };
// The update, and the sums of telemetry in `lanes`: kSumLanes of each.
inline constexpr int kSumLanes = 32;
struct TelemetryLanes {
  alignas(64) double grad[kSumLanes], update[kSumLanes], param[kSumLanes], cross[kSumLanes], moment[kSumLanes];
};
using WatchedLoop = void (*)(const void* coefficients, double scale, const void* raw_grad, const void* grad,
                             void* param, void* const* states, std::int64_t n, std::int64_t reach,
                             TelemetryLanes& lanes);
// The terms of the sums that a rule needs beforehand, as factors: out[2 k] and out[2 k + 1] are those of sum k.
using MeasureLoop = void (*)(const void* coefficients, const void* grad, const void* param, void* const* states,
                             void* const* out, std::int64_t n);

// One tensor of a step. The states that this variant keeps, and `ema`, have the parameter's layout in memory.
struct StepArgs {
  void* param;
  const void* grad;
  void* state[kMaxStates];
  void* ema;                 // null: no average of the parameter is kept
  const void* coefficients;  // the rule's, for this tensor's step and dtype
  UpdateLoop update;
  FusedLoop fused;  // null: the states are not all stored in one way
  WatchedLoop watched;
  MeasureLoop measure;
  double scale;        // of the cautious mask
  double grad_factor;  // what the gradient is multiplied by; 1 is left out
  double decay;        // coupled L2: decay * param is added to the gradient; 0 is left out
  double ema_decay;
  int states;
  int measures;  // sums that `measure` gives
  // How the arrays are stored; the average is in the dtype of the arithmetic. `coded`: not all of them are, or
  // something is rounded or copied.
  Dtype param_dtype, grad_dtype, state_dtype[kMaxStates];
  bool coded;
  float* scales[kMaxStates];  // of 8-bit states
  void* copy;                 // null, or what `param` is the master of: the same, rounded to copy_dtype
  Dtype copy_dtype;
  bool random_param;    // a narrow parameter is rounded at random, as narrow states always are
  std::uint64_t key;    // of the random words
  std::int64_t offset;  // of the first element in its tensor
};

// Goes over the elements [begin, end); begin is a multiple of kChunk. Sums, kStepSums a chunk, or null to leave them
// out.
using StepPass = void (*)(const StepArgs&, std::int64_t begin, std::int64_t end, double* sums);

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
// Narrow rows are summed several at a time, as one row of at least so many values.
inline constexpr std::int64_t kLeastWidth = 64;
constexpr std::int64_t row_width(std::int64_t c) { return (kLeastWidth + c - 1) / c * c; }
// Such wide rows whose sums are taken together.
constexpr std::int64_t block_rows(std::int64_t width) { return width >= 256 ? 128 : 32768 / width; }
constexpr std::int64_t row_blocks(std::int64_t n, std::int64_t c) {
  const std::int64_t values = block_rows(row_width(c)) * row_width(c);
  return (n * c + values - 1) / values;
}
// Arrays with one entry a channel are repeated for rows, so that 16 entries can be read from any place of a wide row.
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
  double* mean_low;      // null, or what is left of the mean below its last bit
  double* m2_low;        // likewise
  double* pivot;         // what is taken off the values before they are summed; for rows, repeated
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
  double count;     // values a channel, of all workers
  bool training;    // false: mean and inv_std were constants
  bool stream;
};

// Of one stored dtype. Shared out are, to be summed, the blocks of each channel of planes, or of rows; to be written,
// planes (parts of large ones), or chunks of kChunk values of rows. [exact]: with twice the precision of double, and
// twice the workspace.
struct BatchNormKernels {
  void (*pivots[kLayouts])(const BatchNormArgs&);
  void (*moments[kLayouts][2])(const BatchNormArgs&, double* workspace, std::int64_t begin, std::int64_t end);
  void (*statistics[kLayouts][2])(const BatchNormArgs&, double* workspace);
  // What `apply` needs of rows: kRowCoefficients arrays of row_width + kPadding.
  void (*coefficients)(const BatchNormArgs&, void* coefficients);
  void (*apply[kLayouts])(const BatchNormArgs&, const void* coefficients, std::int64_t begin, std::int64_t end);

  void (*gradient_sums[kLayouts])(const BatchNormGradientArgs&, double* workspace, std::int64_t begin,
                                  std::int64_t end);
  void (*gradient_totals[kLayouts])(const BatchNormGradientArgs&, double* workspace);
  void (*gradient_coefficients)(const BatchNormGradientArgs&, void* coefficients);
  void (*gradient[kLayouts])(const BatchNormGradientArgs&, const void* coefficients, std::int64_t begin,
                             std::int64_t end);

  // All of it for channels [begin, end) of planes, one after the other, so that every pass but the first finds the
  // channel in the cache.
  void (*forward)(const BatchNormArgs&, std::int64_t begin, std::int64_t end);
  void (*backward)(const BatchNormGradientArgs&, std::int64_t begin, std::int64_t end);
};
inline constexpr int kRowCoefficients = 5;

struct SoftmaxArgs {
  std::int64_t rows, classes;
  const void* logits;
  void* out;
  bool stream;
};

// Which classes a loss wants: one, by labels; one, and a little of all; any.
enum class Goal { labels, smooth_labels, targets };
inline constexpr int kGoals = 3;

struct CrossEntropyArgs {
  std::int64_t rows, classes;
  const void* logits;
  const std::int64_t* labels;  // null: none
  std::int64_t ignore;         // the label of rows that do not count
  const void* targets;         // null: none; else stored as the logits
  const void* weight;          // null: 1; else of the classes, in the dtype of the arithmetic
  double peak, rest;           // of what is wanted, at a label or times a target, and everywhere
  void* dlogits;
  double* losses;  // one a row
  double scale;    // of the gradient
  bool stream;
};

struct ElementwiseLossArgs {
  const void* x;
  const void* targets;
  void* dx;
  void* losses;  // null: their sum is wanted; else in the dtype of the arithmetic
  double weight;
  double scale;  // of the gradient
};
enum class ElementwiseLoss { binary, squared };
inline constexpr int kElementwiseLosses = 2;

struct DropoutArgs {
  const void* x;
  const void* residual;  // null: none
  void* y;
  std::uint64_t key, offset;  // of the words; the number of the first choice
  std::int64_t unit;          // elements that a choice is made for
  std::uint32_t threshold;    // words below it drop
  double scale;
  bool stream;
};

// The bytes of a step with next to no arithmetic: one array is read, the others are read and written.
struct RoofArgs {
  const float* read;
  float* read_write[1 + kMaxStates];
};

struct KernelTable {
  const char* name;
  // [cautious]
  UpdateLoop update[kMaxRules][kMathsDtypes][kMaxVariants][2];
  FusedLoop fused[kMaxRules][kMaxVariants][2][kFusedWays];
  WatchedLoop watched[kMaxRules][kMathsDtypes][kMaxVariants][2];
  MeasureLoop measure[kMaxRules][kMathsDtypes][kMaxVariants][2];
  StepPass step[kMathsDtypes];
  // Read-only: kGradSquares and kNonFinite; the sums of `measure`.
  StepPass gradient_sums[kMathsDtypes];
  StepPass measure_sums[kMathsDtypes];
  // x . y, and y <- y + a x; elements [begin, end).
  double (*dot[kMathsDtypes])(const void* x, const void* y, std::int64_t begin, std::int64_t end);
  void (*axpy[kMathsDtypes])(double a, const void* x, void* y, std::int64_t begin, std::int64_t end);
  BatchNormKernels batch_norm[kDtypes];
  // Rows [begin, end); `scratch` takes a row in the dtype of the arithmetic. [log]
  void (*cross_entropy[kDtypes][kGoals])(const CrossEntropyArgs&, void* scratch, std::int64_t begin, std::int64_t end);
  void (*softmax[kDtypes][2])(const SoftmaxArgs&, void* scratch, std::int64_t begin, std::int64_t end);
  // Elements [begin, end). [residual]
  double (*elementwise_loss[kDtypes][kElementwiseLosses])(const ElementwiseLossArgs&, std::int64_t begin,
                                                          std::int64_t end);
  void (*dropout[kDtypes][2])(const DropoutArgs&, std::int64_t begin, std::int64_t end);
  // Philox words, and what the maths functions give, for tests: the latter of n floats.
  void (*philox)(std::uint64_t key, std::uint64_t upper, std::uint64_t group, std::int64_t groups,
                 std::uint32_t* words);
  void (*exponential)(const float* x, float* out, std::int64_t n);
  void (*log_1p)(const float* x, float* out, std::int64_t n);
  double (*sum)(const double* x, std::int64_t n);
  // To the nearest; [0]: float16, [1]: bfloat16.
  void (*narrow[2])(const float* from, void* to, std::int64_t n);
  // [k]: 1 + k arrays are read and written; elements [begin, end).
  void (*roof_step[1 + kMaxStates])(const RoofArgs&, std::int64_t begin, std::int64_t end);
  void (*roof_map)(const float* a, const float* b, float* out, bool stream, std::int64_t begin, std::int64_t end);
};

}  // namespace fusedstep
