// The instruction sets, and which of them computes.
#pragma once

#include <string>
#include <vector>

#include "kernels/abi/table.h"

namespace fusedstep::runtime {

// Best last; "numpy", the reference, first.
std::vector<std::string> available_sets();

// The table in use; null is the reference. The first call reads FUSEDSTEP_ISA; throws std::invalid_argument for a name
// that is unknown or that this processor lacks.
const KernelTable* active_table();
std::string active_set();
void activate_set(const std::string& name);

// By name, for benches; null where absent.
const KernelTable* find_table(const std::string& name);

}  // namespace fusedstep::runtime
