// Who computes losses: the kernels of an instruction set, or the NumPy reference.
#pragma once

#include <memory>

#include "bind/losses/work.h"
#include "kernels/abi/table.h"

namespace fusedstep::bind {

class LossBackend {
 public:
  virtual ~LossBackend() = default;

  // What the mean over rows with labels divides by.
  virtual double mean_divisor(const CrossEntropyWork& work) const = 0;
  // These write the gradient, times loss.scale(), and the losses where they are wanted one by one; and give their sum.
  virtual double cross_entropy(const CrossEntropyWork& work, const Loss& loss) const = 0;
  virtual double elementwise(const ElementwiseWork& work, const Loss& loss) const = 0;
  // The logarithm of it, if `log`.
  virtual void softmax(const Input& logits, const Result& out, bool log) const = 0;
};

std::unique_ptr<const LossBackend> native_losses(const KernelTable& table);
std::unique_ptr<const LossBackend> numpy_losses();

}  // namespace fusedstep::bind
