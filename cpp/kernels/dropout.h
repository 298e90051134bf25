// Inverted dropout: y = residual + (word >= threshold ? x * scale : 0), by Philox words of the elements' numbers.
#pragma once

#include "kernels/philox.h"
#include "kernels/table.h"

namespace fusedstep::FUSEDSTEP_SET {

FUSEDSTEP_INLINE Floats where_at_least(Bits words, std::uint32_t threshold, Floats yes) {
#if defined(__AVX512F__)
  const __mmask16 kept = _mm512_cmpge_epu32_mask((__m512i)words, _mm512_set1_epi32(int(threshold)));
  return (Floats)_mm512_maskz_mov_ps(kept, (__m512)yes);
#else
  return (Floats)((Bits)(words >= threshold) & (Bits)yes);
#endif
}
FUSEDSTEP_INLINE Wide where_at_least(Bits words, std::uint32_t threshold, Wide yes) {
  const Longs kept_low = __builtin_convertvector(
      __builtin_shufflevector((Ints)(words >= threshold), (Ints)words, 0, 1, 2, 3, 4, 5, 6, 7), Longs);
  const Longs kept_high = __builtin_convertvector(
      __builtin_shufflevector((Ints)(words >= threshold), (Ints)words, 8, 9, 10, 11, 12, 13, 14, 15), Longs);
  return {(Doubles)(kept_low & (Longs)yes.low), (Doubles)(kept_high & (Longs)yes.high)};
}

// Groups whose words stand in the cache.
inline constexpr std::int64_t kDropoutGroups = 32;

template <class T, bool Residual>
void dropout(const DropoutArgs& a, std::int64_t begin, std::int64_t end) {
  using S = typename Arithmetic<T>::Scalar;
  const PhiloxKeys keys(a.key);
  const S scale = S(a.scale);
  alignas(64) std::uint32_t words[(kDropoutGroups + 1) * kPhiloxGroup];
  constexpr std::int64_t step = kDropoutGroups * kPhiloxGroup;
  for (std::int64_t i = begin; i < end; i += step) {
    const std::int64_t l = end - i < step ? end - i : step;
    const std::uint64_t number = a.offset + std::uint64_t(i);
    const std::int64_t shift = std::int64_t(number % kPhiloxGroup);
    const T* x = static_cast<const T*>(a.x) + i;
    philox_groups(keys, 0, number / kPhiloxGroup, (shift + l + kPhiloxGroup - 1) / kPhiloxGroup, words, x);
    const T* residual = Residual ? static_cast<const T*>(a.residual) + i : nullptr;
    write_lanes(static_cast<T*>(a.y) + i, l, a.stream, [&](std::int64_t k, std::int64_t n) FUSEDSTEP_LAMBDA {
      Bits w;
      __builtin_memcpy(&w, words + shift + k, sizeof w);
      const auto kept = where_at_least(w, a.threshold, load(x + k, n) * scale);
      if constexpr (Residual) return load(residual + k, n) + kept;
      return kept;
    });
  }
  if (a.stream) end_stream();
}

}  // namespace fusedstep::FUSEDSTEP_SET
