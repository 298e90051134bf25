#include "kernels/loss/elementwise.h"

#include "kernels/abi/set.h"

namespace fusedstep::FUSEDSTEP_SET {

// In the order of Dtype, and of ElementwiseLoss.
constinit const ElementwiseKernels elementwise_kernels = {
    .loss = {
        {elementwise_loss<float, Binary>, elementwise_loss<float, Squared>},
        {elementwise_loss<double, Binary>, elementwise_loss<double, Squared>},
        {elementwise_loss<Float16, Binary>, elementwise_loss<Float16, Squared>},
        {elementwise_loss<BFloat16, Binary>, elementwise_loss<BFloat16, Squared>},
    }};

}  // namespace fusedstep::FUSEDSTEP_SET
