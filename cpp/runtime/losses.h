// Losses and softmax, shared out over the threads; and the equations of a whole loss.
#pragma once

#include "kernels/abi/table.h"

namespace fusedstep::runtime {

// What the mean over rows with labels divides by: the weights of the labels that are not ignored; their number where
// `weights` is null.
double mean_divisor(const std::int64_t* labels, std::int64_t rows, std::int64_t ignore, const double* weights);

// Sets what is wanted at a label (or times a target), 1 - smoothing, and of every class, smoothing / classes, and
// computes. `dtype` is that of the logits and of what is made of them.
void cross_entropy(const KernelTable& table, Dtype dtype, CrossEntropyArgs args, double smoothing);
void softmax(const KernelTable& table, Dtype dtype, bool log, SoftmaxArgs args);
// Gives the sum of the losses, where they are not wanted one by one.
double elementwise_loss(const KernelTable& table, Dtype dtype, ElementwiseLoss loss, const ElementwiseLossArgs& args,
                        std::int64_t n);

}  // namespace fusedstep::runtime
