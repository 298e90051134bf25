// What crosses between the instruction sets and the rest: plain structs and function pointers, nothing else.
#pragma once

#include <cstdint>

#include "rules/rule.h"

namespace fusedstep {

// Blocks sit in the first-level cache; sums are taken of chunks. Neither depends on the number of threads.
inline constexpr std::int64_t kBlock = 1024;
inline constexpr std::int64_t kChunk = 4 * kBlock;

// Rows of an (N, C) array whose statistics are taken together.
inline constexpr std::int64_t kStatsRows = 128;

inline constexpr int kMaxRules = 64;

enum class Dtype { float32, float64 };
inline constexpr int kDtypes = 2;
constexpr std::int64_t item_bytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 8; }

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
// The same, and the sums of telemetry in `lanes`: kSumLanes of each.
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
  WatchedLoop watched;
  MeasureLoop measure;
  double scale;        // of the cautious mask
  double grad_factor;  // what the gradient is multiplied by; 1 is left out
  double decay;        // coupled L2: decay * param is added to the gradient; 0 is left out
  double ema_decay;
  int states;
  int measures;  // sums that `measure` gives
};

// Goes over the elements [begin, end); begin is a multiple of kChunk. Sums, kStepSums a chunk, or null to leave them
// out.
using StepPass = void (*)(const StepArgs&, std::int64_t begin, std::int64_t end, double* sums);

// Batch norm over n samples, c channels and l contiguous positions (1 for an (N, C) array).
struct BatchNormArgs {
  std::int64_t n, c, l;
  const float* x;
  const float* weight;  // null: 1
  const float* bias;    // null: 0
  float* y;
  double* mean;     // of the batch in training, else taken as given
  double* inv_std;  // likewise
  float* running_mean;
  float* running_var;
  double momentum;
  double eps;
  bool unbiased;
  bool training;
  bool stream;  // write past the cache
};

struct BatchNormBackwardArgs {
  std::int64_t n, c, l;
  const float* x;
  const float* dy;
  const float* weight;  // null: 1
  const double* mean;
  const double* inv_std;
  float* dx;
  float* dweight;
  float* dbias;
  bool training;  // false: mean and inv_std were constants
  bool stream;
};

struct CrossEntropyArgs {
  std::int64_t rows, classes;
  const float* logits;
  const std::int64_t* labels;
  float* dlogits;
  double* losses;  // one a row
  double scale;    // of the gradient
};

// The bytes of a step with next to no arithmetic: one array is read, the others are read and written.
struct RoofArgs {
  const float* read;
  float* read_write[1 + kMaxStates];
};

struct KernelTable {
  const char* name;
  // [cautious]
  UpdateLoop update[kMaxRules][kDtypes][kMaxVariants][2];
  WatchedLoop watched[kMaxRules][kDtypes][kMaxVariants][2];
  MeasureLoop measure[kMaxRules][kDtypes][kMaxVariants][2];
  StepPass step[kDtypes];
  // Read-only: kGradSquares and kNonFinite; the sums of `measure`.
  StepPass gradient_sums[kDtypes];
  StepPass measure_sums[kDtypes];
  // x . y, and y <- y + a x; elements [begin, end).
  double (*dot[kDtypes])(const void* x, const void* y, std::int64_t begin, std::int64_t end);
  void (*axpy[kDtypes])(double a, const void* x, void* y, std::int64_t begin, std::int64_t end);
  // Channels [begin, end).
  void (*batch_norm_planes)(const BatchNormArgs&, std::int64_t begin, std::int64_t end);
  void (*batch_norm_planes_backward)(const BatchNormBackwardArgs&, std::int64_t begin, std::int64_t end);
  // (N, C) in three parts: blocks [begin, end) of kStatsRows rows into the workspace (2 * c zeroed doubles a block),
  // the blocks together, rows [begin, end).
  void (*batch_norm_rows_moments)(const BatchNormArgs&, double* workspace, std::int64_t begin, std::int64_t end);
  void (*batch_norm_rows_statistics)(const BatchNormArgs&, double* workspace);
  void (*batch_norm_rows_apply)(const BatchNormArgs&, std::int64_t begin, std::int64_t end);
  void (*batch_norm_rows_sums)(const BatchNormBackwardArgs&, double* workspace, std::int64_t begin, std::int64_t end);
  void (*batch_norm_rows_total)(const BatchNormBackwardArgs&, double* workspace);
  void (*batch_norm_rows_gradient)(const BatchNormBackwardArgs&, const double* workspace, std::int64_t begin,
                                   std::int64_t end);
  // Rows [begin, end).
  void (*cross_entropy)(const CrossEntropyArgs&, std::int64_t begin, std::int64_t end);
  double (*sum)(const double* x, std::int64_t n);
  // [k]: 1 + k arrays are read and written; elements [begin, end).
  void (*roof_step[1 + kMaxStates])(const RoofArgs&, std::int64_t begin, std::int64_t end);
  void (*roof_map)(const float* a, const float* b, float* out, bool stream, std::int64_t begin, std::int64_t end);
};

}  // namespace fusedstep
