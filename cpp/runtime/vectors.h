// Whole vectors, shared out over the threads.
#pragma once

#include "kernels/abi/table.h"

namespace fusedstep::runtime {

double dot(const KernelTable& table, Dtype dtype, const void* x, const void* y, std::int64_t n);
void axpy(const KernelTable& table, Dtype dtype, double a, const void* x, void* y, std::int64_t n);

}  // namespace fusedstep::runtime
