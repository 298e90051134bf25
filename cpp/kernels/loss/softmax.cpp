#include "kernels/loss/softmax.h"

#include "kernels/abi/set.h"

namespace fusedstep::FUSEDSTEP_SET {

// In the order of Dtype; [log].
constinit const SoftmaxKernels softmax_kernels = {.softmax = {
                                                      {softmax<float, false>, softmax<float, true>},
                                                      {softmax<double, false>, softmax<double, true>},
                                                      {softmax<Float16, false>, softmax<Float16, true>},
                                                      {softmax<BFloat16, false>, softmax<BFloat16, true>},
                                                  }};

}  // namespace fusedstep::FUSEDSTEP_SET
