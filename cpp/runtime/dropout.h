// Dropout, shared out over the threads.
#pragma once

#include "kernels/abi/table.h"

namespace fusedstep::runtime {

// How many of the 2^32 random words drop, when the probability is p: p * 2^32, rounded. Below 2^32 for p < 1 - 2^-33.
double dropped_words(double p);
// Sets the threshold and the scale for a probability to drop, and computes.
void dropout(const KernelTable& table, Dtype dtype, DropoutArgs args, double p, std::int64_t n);

}  // namespace fusedstep::runtime
