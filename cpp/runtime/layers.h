// Loss and roofs, shared out over the threads.
#pragma once

#include "kernels/table.h"

namespace fusedstep::runtime {

// Gives the mean of the rows' losses.
double cross_entropy(const KernelTable& table, CrossEntropyArgs args);

void roof_step(const KernelTable& table, const RoofArgs& args, int arrays, std::int64_t n);
void roof_map(const KernelTable& table, const float* a, const float* b, float* out, std::int64_t n);

}  // namespace fusedstep::runtime
