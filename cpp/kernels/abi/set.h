// What the translation units of an instruction set give to its table: each its own, as constant data.
#pragma once

#include "kernels/abi/table.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class Rule>
struct OfRule {
  static const RuleKernels kernels;
};
extern const StepKernels step_kernels;
extern const BatchNormKernels plane_kernels[kDtypes], row_kernels[kDtypes];
extern const CrossEntropyKernels cross_entropy_kernels;
extern const SoftmaxKernels softmax_kernels;
extern const ElementwiseKernels elementwise_kernels;
extern const DropoutKernels dropout_kernels;
extern const ArrayKernels array_kernels;
extern const RoofKernels roof_kernels;

}  // namespace fusedstep::FUSEDSTEP_SET
