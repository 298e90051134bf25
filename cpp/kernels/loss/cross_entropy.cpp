#include "kernels/loss/cross_entropy.h"

#include "kernels/abi/set.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class T>
constexpr void fill(CrossEntropyKernels& kernels, Dtype dtype) {
  kernels.loss[int(dtype)][int(Goal::labels)] = cross_entropy<T, Goal::labels>;
  kernels.loss[int(dtype)][int(Goal::smooth_labels)] = cross_entropy<T, Goal::smooth_labels>;
  kernels.loss[int(dtype)][int(Goal::targets)] = cross_entropy<T, Goal::targets>;
}

constexpr CrossEntropyKernels make_kernels() {
  CrossEntropyKernels kernels = {};
  fill<float>(kernels, Dtype::float32);
  fill<double>(kernels, Dtype::float64);
  fill<Float16>(kernels, Dtype::float16);
  fill<BFloat16>(kernels, Dtype::bfloat16);
  return kernels;
}

constinit const CrossEntropyKernels cross_entropy_kernels = make_kernels();

}  // namespace fusedstep::FUSEDSTEP_SET
