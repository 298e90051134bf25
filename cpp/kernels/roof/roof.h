// The roofs: loops that move the same bytes as a kernel, with next to no arithmetic. Only benches call them.
#pragma once

#include <utility>

#include "kernels/abi/roof.h"
#include "kernels/pack/vectors.h"

namespace fusedstep::FUSEDSTEP_SET {

template <int... A>
inline void roof_elements(const float* g, float* const* arrays, std::int64_t begin, std::int64_t end,
                          std::integer_sequence<int, A...>) {
  float* const a[] = {arrays[A]..., nullptr};
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    const float x = g[i];
    ((a[A][i] += x), ...);
  }
}

template <int Arrays>
void roof_step(const RoofArgs& a, std::int64_t begin, std::int64_t end) {
  roof_elements(a.read, a.read_write, begin, end, std::make_integer_sequence<int, Arrays>());
}

// out = a, or a + b.
inline void roof_map(const float* a, const float* b, float* out, bool streamed, std::int64_t begin, std::int64_t end) {
  write_lanes(out + begin, end - begin, streamed, [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA {
    const Floats v = load(a + begin + i, n);
    return b ? v + load(b + begin + i, n) : v;
  });
  if (streamed) end_stream();
}

}  // namespace fusedstep::FUSEDSTEP_SET
