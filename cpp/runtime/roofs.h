// The roofs of benches: the same bytes with next to no arithmetic, shared out over the threads.
#pragma once

#include "kernels/abi/table.h"

namespace fusedstep::runtime {

// One array is read, `arrays` others are read and written.
void roof_step(const KernelTable& table, const RoofArgs& args, int arrays, std::int64_t n);
// One array is written from one or, where b is not null, two others.
void roof_map(const KernelTable& table, const float* a, const float* b, float* out, std::int64_t n);

}  // namespace fusedstep::runtime
