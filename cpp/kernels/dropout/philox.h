// Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): random words
// from a counter and a key, without state.
#pragma once

#include "kernels/codec/narrow.h"

namespace fusedstep::FUSEDSTEP_SET {

// One word in the lower half of each lane; the products ignore the upper half. One vector only, so that two counters
// stay in registers through all rounds.
using Counters = Pack<std::uint64_t, kVectorBytes / 8>;

FUSEDSTEP_INLINE Counters multiply_words(Counters a, Counters b) {
#if defined(__AVX512F__)
  return (Counters)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Counters)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Counters)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__ARM_NEON)
  return (Counters)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

inline constexpr int kPhiloxRounds = 10;

struct PhiloxKeys {
  // Repeated over a whole vector: an operation reads it from memory, without a broadcast.
  alignas(64) std::uint32_t round[kPhiloxRounds][2][kVectorBytes / 4];

  explicit PhiloxKeys(std::uint64_t key) {
    for (int k = 0; k < kPhiloxRounds; ++k) {
      for (int lane = 0; lane < kVectorBytes / 4; ++lane) {
        round[k][0][lane] = std::uint32_t(key) + std::uint32_t(k) * 0x9E3779B9u;
        round[k][1][lane] = std::uint32_t(key >> 32) + std::uint32_t(k) * 0xBB67AE85u;
      }
    }
  }
};

FUSEDSTEP_INLINE void philox(Counters (&c)[4], const PhiloxKeys& keys) {
  const Counters m0 = spread<Counters>(0xD2511F53u), m1 = spread<Counters>(0xCD9E8D57u);
  for (int k = 0; k < kPhiloxRounds; ++k) {
    const Counters p0 = multiply_words(c[0], m0), p1 = multiply_words(c[2], m1);
    c[0] = (p1 >> 32) ^ c[1] ^ load_pack<Counters>(keys.round[k][0]);
    c[1] = p1;
    c[2] = (p0 >> 32) ^ c[3] ^ load_pack<Counters>(keys.round[k][1]);
    c[3] = p0;
  }
}

// Group g holds the words of elements 64 g to 64 g + 63: of 16 counters with 4 words each. Word k of counter 16 g + j
// is that of element 64 g + 16 k + j.
inline constexpr std::int64_t kPhiloxGroup = 4 * kLanes;
alignas(64) inline constexpr std::uint64_t kEvens[kLanes / 2] = {0, 2, 4, 6, 8, 10, 12, 14};

// Writes the words of groups [first, first + groups). `upper` is the upper half of every counter. Meanwhile it
// prefetches as many elements of type T at `ahead`.
template <class T>
inline void philox_groups(const PhiloxKeys& keys, std::uint64_t upper, std::uint64_t first, std::int64_t groups,
                          std::uint32_t* words, const T* ahead) {
  constexpr int lanes = lanes_of<Counters>;
  const Counters third = spread<Counters>(upper), fourth = spread<Counters>(upper >> 32);
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t k = 0; k < kPhiloxGroup; k += 64 / std::int64_t(sizeof(T))) {
      __builtin_prefetch(ahead + g * kPhiloxGroup + k);
    }
    for (int part = 0; part < kLanes / 2; part += lanes) {
      // Two vectors of counters: the words of even lanes, and of odd ones.
      const Counters counter = load_pack<Counters>(kEvens + part) + (first + std::uint64_t(g)) * 16;
      Counters a[4] = {counter, counter >> 32, third, fourth};
      Counters b[4] = {counter + 1, (counter + 1) >> 32, third, fourth};
      philox(a, keys);
      philox(b, keys);
      for (int k = 0; k < 4; ++k) {
        store_pack(words + g * kPhiloxGroup + k * kLanes + 2 * part, (a[k] & 0xffffffffu) | (b[k] << 32));
      }
    }
  }
}

}  // namespace fusedstep::FUSEDSTEP_SET
