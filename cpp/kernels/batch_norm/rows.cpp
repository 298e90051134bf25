#include "kernels/batch_norm/rows.h"

#include "kernels/abi/set.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class T>
constexpr BatchNormKernels kernels_of_rows() {
  return {
      .pivots = row_pivots<T>,
      .moments = {row_moments<T, false>, row_moments<T, true>},
      .statistics = {row_statistics<false>, row_statistics<true>},
      .coefficients = row_coefficients<T>,
      .apply = apply_rows<T>,
      .gradient_sums = row_gradient_sums<T>,
      .gradient_totals = row_gradient_totals,
      .gradient_coefficients = row_gradient_coefficients<T>,
      .gradient = row_gradient<T>,
      .forward = nullptr,
      .backward = nullptr,
  };
}

// In the order of Dtype.
constinit const BatchNormKernels row_kernels[] = {kernels_of_rows<float>(), kernels_of_rows<double>(),
                                                  kernels_of_rows<Float16>(), kernels_of_rows<BFloat16>()};

}  // namespace fusedstep::FUSEDSTEP_SET
