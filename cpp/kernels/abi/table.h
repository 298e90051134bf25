// All that crosses between an instruction set and the rest: plain structs and function pointers.
#pragma once

#include "kernels/abi/array.h"
#include "kernels/abi/batch_norm.h"
#include "kernels/abi/dropout.h"
#include "kernels/abi/loss.h"
#include "kernels/abi/roof.h"
#include "kernels/abi/step.h"

namespace fusedstep {

inline constexpr int kMaxRules = 64;

// The kernels of one instruction set.
struct KernelTable {
  const char* name;
  const RuleKernels* rules[kMaxRules];  // null: the rule is NumPy's alone
  const StepKernels* step;
  const BatchNormKernels* batch_norm[kLayouts];  // each kDtypes of them
  const CrossEntropyKernels* cross_entropy;
  const SoftmaxKernels* softmax;
  const ElementwiseKernels* elementwise;
  const DropoutKernels* dropout;
  const ArrayKernels* arrays;
  const RoofKernels* roofs;
};

}  // namespace fusedstep
