// Loops that prefetch. The processor's own prefetch stops at the end of each page, and runs too few lines ahead where a
// loop reads several arrays or waits for the divider.
#pragma once

#include "kernels/pack/vectors.h"

namespace fusedstep::FUSEDSTEP_SET {

// Elements between two prefetches.
inline constexpr std::int64_t kStride = 32;

template <bool Write, class T>
FUSEDSTEP_INLINE void fetch(const T* x) {
  for (std::int64_t k = 0; k < kStride; k += 64 / std::int64_t(sizeof(T))) __builtin_prefetch(x + k, Write);
}

// body(i) for n elements, and ahead(i) before each stride of them.
template <class Fetch, class Body>
FUSEDSTEP_INLINE void each_element(std::int64_t n, Fetch ahead, Body body) {
  std::int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    ahead(i);
#pragma omp simd
    for (std::int64_t k = 0; k < kStride; ++k) body(i + k);
  }
#pragma omp simd
  for (std::int64_t k = i; k < n; ++k) body(k);
}

}  // namespace fusedstep::FUSEDSTEP_SET
