// A whole optimizer step: every tensor cut into chunks, the chunks shared out in one parallel region.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace fusedstep::runtime {

struct StepTensor {
  StepArgs args;
  StepKernel kernel;
  Dtype dtype;
  std::int64_t size;
  std::int64_t bytes_per_element;
};

void run_step(const std::vector<StepTensor>& tensors);

}  // namespace fusedstep::runtime
