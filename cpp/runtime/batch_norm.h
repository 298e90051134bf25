// Batch norm, shared out over the threads.
#pragma once

#include "kernels/abi/table.h"

namespace fusedstep::runtime {

// Arrays of the caller have one entry a channel. Where kernels need them repeated, for rows, it is done here.
struct BatchNormPlan {
  const KernelTable& table;
  Dtype dtype;
  Layout layout;
};

// Statistics of the batch with twice the precision of double: mean, m2, and their low parts.
void batch_norm_statistics(const BatchNormPlan&, BatchNormArgs);
// Training: takes the statistics of the batch, and applies them. Else applies those given.
void batch_norm(const BatchNormPlan&, BatchNormArgs, bool training);

void batch_norm_gradient_sums(const BatchNormPlan&, BatchNormGradientArgs);
// From the sums.
void batch_norm_gradient(const BatchNormPlan&, BatchNormGradientArgs);
// Both.
void batch_norm_backward(const BatchNormPlan&, BatchNormGradientArgs);

}  // namespace fusedstep::runtime
