// Loops over whole arrays.
#pragma once

#include <cstdint>

#include "kernels/abi/dtype.h"

namespace fusedstep {

// Elements [begin, end), by the dtype of the arithmetic.
struct ArrayKernels {
  double (*dot[kMathsDtypes])(const void* x, const void* y, std::int64_t begin, std::int64_t end);
  void (*axpy[kMathsDtypes])(double a, const void* x, void* y, std::int64_t begin, std::int64_t end);  // y <- y + a x
  double (*sum)(const double* x, std::int64_t n);
  // Rounds to nearest. [0]: to float16, [1]: to bfloat16.
  void (*narrow[2])(const float* from, void* to, std::int64_t n);
  // Of n floats, for tests.
  void (*exponential)(const float* x, float* out, std::int64_t n);
  void (*log_1p)(const float* x, float* out, std::int64_t n);
};

}  // namespace fusedstep
