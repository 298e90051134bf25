#include "kernels/step/step.h"

#include "kernels/abi/set.h"

namespace fusedstep::FUSEDSTEP_SET {

constinit const StepKernels step_kernels = {
    .run = {step<float>, step<double>},
    .gradient_sums = {gradient_sums<float>, gradient_sums<double>},
    .measure_sums = {measure_sums<float>, measure_sums<double>},
};

}  // namespace fusedstep::FUSEDSTEP_SET
