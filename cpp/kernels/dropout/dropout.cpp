#include "kernels/dropout/dropout.h"

#include "kernels/abi/set.h"

namespace fusedstep::FUSEDSTEP_SET {

// In the order of Dtype; [residual].
constinit const DropoutKernels dropout_kernels = {.dropout =
                                                      {
                                                          {dropout<float, false>, dropout<float, true>},
                                                          {dropout<double, false>, dropout<double, true>},
                                                          {dropout<Float16, false>, dropout<Float16, true>},
                                                          {dropout<BFloat16, false>, dropout<BFloat16, true>},
                                                      },
                                                  .philox = philox_words};

}  // namespace fusedstep::FUSEDSTEP_SET
