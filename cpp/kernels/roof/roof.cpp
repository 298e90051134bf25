#include "kernels/roof/roof.h"

#include "kernels/abi/set.h"

namespace fusedstep::FUSEDSTEP_SET {

template <int... A>
constexpr RoofKernels make_kernels(std::integer_sequence<int, A...>) {
  return {.step = {roof_step<1 + A>...}, .map = roof_map};
}

constinit const RoofKernels roof_kernels = make_kernels(std::make_integer_sequence<int, 1 + kMaxStates>());

}  // namespace fusedstep::FUSEDSTEP_SET
