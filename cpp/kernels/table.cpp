// The table of an instruction set, which FUSEDSTEP_SET names. It alone leaves the namespace of its set.
#include "kernels/abi/set.h"
#include "rules/all.h"

#define FUSEDSTEP_STRING_(x) #x
#define FUSEDSTEP_STRING(x) FUSEDSTEP_STRING_(x)

namespace fusedstep::FUSEDSTEP_SET {

template <class Rule>
constexpr const RuleKernels* kernels_of() {
  if constexpr (Rule::native) return &OfRule<LoopsOf<Rule>>::kernels;
  return nullptr;
}

template <class... Rule>
constexpr void fill_rules(KernelTable& table, RuleList<Rule...>) {
  static_assert(sizeof...(Rule) <= kMaxRules);
  int index = 0;
  ((table.rules[index++] = kernels_of<Rule>()), ...);
}

constexpr KernelTable make_table() {
  KernelTable table = {};
  table.name = FUSEDSTEP_STRING(FUSEDSTEP_SET);
  fill_rules(table, Rules());
  table.step = &step_kernels;
  table.batch_norm[kPlanes] = plane_kernels;
  table.batch_norm[kRows] = row_kernels;
  table.cross_entropy = &cross_entropy_kernels;
  table.softmax = &softmax_kernels;
  table.elementwise = &elementwise_kernels;
  table.dropout = &dropout_kernels;
  table.arrays = &array_kernels;
  table.roofs = &roof_kernels;
  return table;
}

// Constant data, here and in all units: code that filled it at load time would run before anyone has asked the
// processor.
extern constinit const KernelTable table;
constinit const KernelTable table = make_table();

}  // namespace fusedstep::FUSEDSTEP_SET
