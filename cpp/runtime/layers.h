// Losses, softmax, dropout, rows of a batch, and roofs, shared out over the threads.
#pragma once

#include "kernels/abi/table.h"

namespace fusedstep::runtime {

// `dtype` is that of the logits and of what is made of them.
void cross_entropy(const KernelTable& table, Dtype dtype, Goal goal, CrossEntropyArgs args);
void softmax(const KernelTable& table, Dtype dtype, bool log, SoftmaxArgs args);
// Gives the sum of the losses, where they are not wanted one by one.
double elementwise_loss(const KernelTable& table, Dtype dtype, ElementwiseLoss loss, const ElementwiseLossArgs& args,
                        std::int64_t n);
void dropout(const KernelTable& table, Dtype dtype, DropoutArgs args, std::int64_t n);
// out[k] = source[rows[k]], rows of so many bytes.
void gather_rows(const char* source, const std::int64_t* rows, char* out, std::int64_t count, std::int64_t row_bytes);

void roof_step(const KernelTable& table, const RoofArgs& args, int arrays, std::int64_t n);
void roof_map(const KernelTable& table, const float* a, const float* b, float* out, std::int64_t n);

}  // namespace fusedstep::runtime
