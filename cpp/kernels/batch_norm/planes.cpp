#include "kernels/batch_norm/planes.h"

#include "kernels/abi/set.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class T>
constexpr BatchNormKernels kernels_of_planes() {
  return {
      .pivots = plane_pivots<T>,
      .moments = {plane_moments<T, false>, plane_moments<T, true>},
      .statistics = {plane_statistics<false>, plane_statistics<true>},
      .coefficients = plane_coefficients<T>,
      .apply = apply_planes<T>,
      .gradient_sums = plane_gradient_sums<T>,
      .gradient_totals = plane_gradient_totals,
      .gradient_coefficients = plane_gradient_coefficients<T>,
      .gradient = plane_gradient<T>,
      .forward = forward_planes<T>,
      .backward = backward_planes<T>,
  };
}

// In the order of Dtype.
constinit const BatchNormKernels plane_kernels[] = {kernels_of_planes<float>(), kernels_of_planes<double>(),
                                                    kernels_of_planes<Float16>(), kernels_of_planes<BFloat16>()};

}  // namespace fusedstep::FUSEDSTEP_SET
