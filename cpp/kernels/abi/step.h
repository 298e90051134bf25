// A step: what its passes take, and the loops of a rule.
#pragma once

#include <cstdint>

#include "kernels/abi/dtype.h"
#include "rules/rule.h"

namespace fusedstep {

// Sums that a pass over a tensor gives, in this order.
enum StepSum { kGradSquares, kNonFinite, kUpdateSquares, kParamSquares, kGradMoment, kMomentSquares, kStepSums };
// Sums that a rule may need before its update.
inline constexpr int kMaxMeasures = 2;

// A rule on n elements; `scale` is of the cautious mask. It may prefetch beyond them, up to element `reach`, where the
// part of this thread ends.
using UpdateLoop = void (*)(const void* coefficients, double scale, const void* grad, void* param, void* const* states,
                            std::int64_t n, std::int64_t reach);
// The same for a strip of float32 whose states are all coded in one way; `states` are FusedStates. It decodes them, and
// encodes those of the previous strip.
using FusedLoop = void (*)(const void* coefficients, double scale, const void* grad, void* param, void* states);
enum Fused { kFused8bit, kFusedBfloat16, kFusedWays };
// The update, and the sums of telemetry in kSumLanes lanes each.
struct TelemetryLanes {
  alignas(64) double grad[kSumLanes], update[kSumLanes], param[kSumLanes], cross[kSumLanes], moment[kSumLanes];
};
using TelemetryLoop = void (*)(const void* coefficients, double scale, const void* raw_grad, const void* grad,
                               void* param, void* const* states, std::int64_t n, std::int64_t reach,
                               TelemetryLanes& lanes);
// The sums that a rule needs before its update. Each term is a product of two factors: out[2 k] and out[2 k + 1] are
// those of sum k.
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
  TelemetryLoop telemetry;
  MeasureLoop measure;
  double scale;        // of the cautious mask
  double grad_factor;  // what the gradient is multiplied by; 1 is left out
  double decay;        // coupled L2: decay * param is added to the gradient; 0 is left out
  double ema_decay;
  int states;
  int measures;  // sums that `measure` gives
  // How the arrays are stored; the average is always in the dtype of the arithmetic. `coded`: another array is not, or
  // something is rounded or copied.
  Dtype param_dtype, grad_dtype, state_dtype[kMaxStates];
  bool coded;
  float* scales[kMaxStates];  // of 8-bit states
  void* copy;                 // null, or what `param` is the master of: the same, rounded to copy_dtype
  Dtype copy_dtype;
  bool follows;         // `param` takes over what somebody else wrote into the copy
  bool random_param;    // a narrow parameter is rounded at random, as narrow states always are
  std::uint64_t key;    // of the random words
  std::int64_t offset;  // of the first element in its tensor
};

// Goes over the elements [begin, end); begin is a multiple of kChunk. `sums` takes kStepSums a chunk; null leaves them
// out.
using StepPass = void (*)(const StepArgs&, std::int64_t begin, std::int64_t end, double* sums);

// The loops of one rule. [dtype of the arithmetic][variant][cautious]
struct RuleKernels {
  UpdateLoop update[kMathsDtypes][kMaxVariants][2];
  TelemetryLoop telemetry[kMathsDtypes][kMaxVariants][2];
  MeasureLoop measure[kMathsDtypes][kMaxVariants][2];
  FusedLoop fused[kMaxVariants][2][kFusedWays];
};

// What goes on around the rule, by the dtype of the arithmetic. The last two only read: they give kGradSquares and
// kNonFinite, and the sums of a rule's measure.
struct StepKernels {
  StepPass run[kMathsDtypes];
  StepPass gradient_sums[kMathsDtypes];
  StepPass measure_sums[kMathsDtypes];
};

}  // namespace fusedstep
