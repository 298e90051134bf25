// Inverted dropout: y = residual + (word >= threshold ? x * scale : 0). The Philox word is that of the element's
// number, or of the number of the sample that the element belongs to.
#pragma once

#include "kernels/abi/dropout.h"
#include "kernels/dropout/philox.h"

namespace fusedstep::FUSEDSTEP_SET {

FUSEDSTEP_INLINE auto are_below(Bits words, std::uint32_t threshold) {
#if defined(__SSE2__)
  // SSE2 and AVX2 compare signed numbers only.
  constexpr std::uint32_t sign = 0x80000000u;
  return as<Ints>(words ^ sign) < std::int32_t(threshold ^ sign);
#else
  return words < threshold;
#endif
}
// `yes` in the lanes whose word is at least the threshold, else 0.
FUSEDSTEP_INLINE Floats where_at_least(Bits words, std::uint32_t threshold, Floats yes) {
#if defined(__AVX512F__)
  const __mmask16 kept = _mm512_cmpge_epu32_mask((__m512i)words, _mm512_set1_epi32(int(threshold)));
  return (Floats)_mm512_maskz_mov_ps(kept, (__m512)yes);
#else
  return where_not(are_below(words, threshold), yes);
#endif
}
FUSEDSTEP_INLINE Doubles where_at_least(Bits words, std::uint32_t threshold, Doubles yes) {
#if defined(__AVX512F__)
  const __mmask16 kept = _mm512_cmpge_epu32_mask((__m512i)words, _mm512_set1_epi32(int(threshold)));
  return keep(yes, kept);
#else
  return where_not(twice(are_below(words, threshold)), yes);
#endif
}

// Groups of words that are made at a time, few enough for the cache.
inline constexpr std::int64_t kDropoutGroups = 32;

// Elements [begin, end), all kept or all dropped.
template <class T, bool Residual>
FUSEDSTEP_INLINE void drop_sample(const DropoutArgs& a, bool kept, std::int64_t begin, std::int64_t end) {
  using V = typename Arithmetic<T>::Lanes;
  using S = typename Arithmetic<T>::Scalar;
  const S scale = S(a.scale);
  const T* x = static_cast<const T*>(a.x) + begin;
  const T* residual = Residual ? static_cast<const T*>(a.residual) + begin : nullptr;
  write_lanes(static_cast<T*>(a.y) + begin, end - begin, a.stream,
              [&](std::int64_t k, std::int64_t n) FUSEDSTEP_LAMBDA {
                const V branch = kept ? load(x + k, n) * scale : spread<V>(0);
                if constexpr (Residual) return load(residual + k, n) + branch;
                return branch;
              });
}

// One choice for all elements of a sample. The first and the last sample may be cut by [begin, end).
template <class T, bool Residual>
void drop_samples(const DropoutArgs& a, std::int64_t begin, std::int64_t end) {
  const PhiloxKeys keys(a.key);
  std::uint32_t words[kPhiloxGroup];
  for (std::int64_t i = begin; i < end;) {
    const std::int64_t sample = i / a.unit, next = (sample + 1) * a.unit;
    const std::uint64_t number = a.offset + std::uint64_t(sample);
    if (i == begin || number % kPhiloxGroup == 0) philox_groups(keys, 0, number / kPhiloxGroup, 1, words, words);
    drop_sample<T, Residual>(a, words[number % kPhiloxGroup] >= a.threshold, i, next < end ? next : end);
    i = next;
  }
}

template <class T, bool Residual>
void dropout(const DropoutArgs& a, std::int64_t begin, std::int64_t end) {
  if (a.unit > 1) {
    drop_samples<T, Residual>(a, begin, end);
    if (a.stream) end_stream();
    return;
  }
  using S = typename Arithmetic<T>::Scalar;
  const PhiloxKeys keys(a.key);
  const S scale = S(a.scale);
  // A streamed result is cut at cache lines, not at packs of words: the last pack reads beyond the words.
  alignas(64) std::uint32_t words[(kDropoutGroups + 1) * kPhiloxGroup + kLanes];
  constexpr std::int64_t step = kDropoutGroups * kPhiloxGroup;
  for (std::int64_t i = begin; i < end; i += step) {
    const std::int64_t l = end - i < step ? end - i : step;
    const std::uint64_t number = a.offset + std::uint64_t(i);
    const std::int64_t shift = std::int64_t(number % kPhiloxGroup);
    const T* x = static_cast<const T*>(a.x) + i;
    philox_groups(keys, 0, number / kPhiloxGroup, (shift + l + kPhiloxGroup - 1) / kPhiloxGroup, words, x);
    const T* residual = Residual ? static_cast<const T*>(a.residual) + i : nullptr;
    write_lanes(static_cast<T*>(a.y) + i, l, a.stream, [&](std::int64_t k, std::int64_t n) FUSEDSTEP_LAMBDA {
      const auto kept = where_at_least(load_pack<Bits>(words + shift + k), a.threshold, load(x + k, n) * scale);
      if constexpr (Residual) return load(residual + k, n) + kept;
      return kept;
    });
  }
  if (a.stream) end_stream();
}

inline void philox_words(std::uint64_t key, std::uint64_t upper, std::uint64_t group, std::int64_t groups,
                         std::uint32_t* words) {
  philox_groups(PhiloxKeys(key), upper, group, groups, words, words);
}

}  // namespace fusedstep::FUSEDSTEP_SET
