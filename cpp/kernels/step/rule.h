// The kernels of one rule. For each rule CMake writes a translation unit that includes the rule and this header, and
// names the rule in FUSEDSTEP_RULE_UNIT.
#pragma once

#include <type_traits>

#include "kernels/abi/set.h"
#include "kernels/step/fused_loops.h"
#include "kernels/step/rule_loops.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class Rule, class T, int V, bool Cautious>
constexpr void fill_variant(RuleKernels& kernels, Dtype dtype) {
  kernels.update[int(dtype)][V][Cautious] = update_loop<Rule, V, Cautious, T>;
  kernels.telemetry[int(dtype)][V][Cautious] = telemetry_loop<Rule, V, Cautious, T>;
  if constexpr (Cautious || Rule::sums > 0) {
    kernels.measure[int(dtype)][V][Cautious] = measure_loop<Rule, V, Cautious, T>;
  }
  if constexpr (sizeof(T) == sizeof(float) && (Rule::keeps[V] & ~(Rule::exact | Rule::copies)) != 0) {
    kernels.fused[V][Cautious][kFused8bit] = fused_loop<Rule, V, Cautious, kFused8bit>;
    kernels.fused[V][Cautious][kFusedBfloat16] = fused_loop<Rule, V, Cautious, kFusedBfloat16>;
  }
}

template <class Rule, int V>
constexpr void fill_dtypes(RuleKernels& kernels) {
  fill_variant<Rule, float, V, false>(kernels, Dtype::float32);
  fill_variant<Rule, double, V, false>(kernels, Dtype::float64);
  if constexpr (Rule::cautious) {
    fill_variant<Rule, float, V, true>(kernels, Dtype::float32);
    fill_variant<Rule, double, V, true>(kernels, Dtype::float64);
  }
}

template <class Rule, int... V>
constexpr RuleKernels make_kernels(std::integer_sequence<int, V...>) {
  RuleKernels kernels = {};
  (fill_dtypes<Rule, V>(kernels), ...);
  return kernels;
}

template <class Rule>
constinit const RuleKernels OfRule<Rule>::kernels =
    make_kernels<Rule>(std::make_integer_sequence<int, int(sizeof(Rule::keeps) / sizeof(Rule::keeps[0]))>());

// The kernels that the unit of a rule emits: none for a rule that only NumPy computes, or that runs another's loops.
template <class Rule>
constexpr const RuleKernels* emitted() {
  if constexpr (Rule::native && std::is_same_v<LoopsOf<Rule>, Rule>) return &OfRule<Rule>::kernels;
  return nullptr;
}

#define FUSEDSTEP_RULE_UNIT(Rule)                                               \
  namespace fusedstep::FUSEDSTEP_SET {                                          \
  [[gnu::used]] static constexpr const RuleKernels* kEmitted = emitted<Rule>(); \
  }

}  // namespace fusedstep::FUSEDSTEP_SET
