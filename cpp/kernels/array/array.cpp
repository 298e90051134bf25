#include "kernels/array/array.h"

#include "kernels/abi/set.h"

namespace fusedstep::FUSEDSTEP_SET {

constinit const ArrayKernels array_kernels = {
    .dot = {dot<float>, dot<double>},
    .axpy = {axpy<float>, axpy<double>},
    .sum = sum,
    .narrow = {narrow<Float16>, narrow<BFloat16>},
    .exponential = map<exponential>,
    .log_1p = map<log_1p>,
};

}  // namespace fusedstep::FUSEDSTEP_SET
