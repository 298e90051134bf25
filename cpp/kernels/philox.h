// Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): words of a
// counter and a key, without a state.
#pragma once

#include "kernels/narrow.h"

#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace fusedstep::FUSEDSTEP_SET {

// A word in the lower half of each lane. What stands in the upper halves does not matter: products do not read them.
typedef std::uint64_t Pairs __attribute__((vector_size(64)));

FUSEDSTEP_INLINE Pairs multiply_words(Pairs a, Pairs b) {
#if defined(__AVX512F__)
  return (Pairs)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  __m256i x[2], y[2];
  __builtin_memcpy(x, &a, sizeof a);
  __builtin_memcpy(y, &b, sizeof b);
  for (int k = 0; k < 2; ++k) x[k] = _mm256_mul_epu32(x[k], y[k]);
  __builtin_memcpy(&a, x, sizeof a);
  return a;
#elif defined(__SSE2__)
  __m128i x[4], y[4];
  __builtin_memcpy(x, &a, sizeof a);
  __builtin_memcpy(y, &b, sizeof b);
  for (int k = 0; k < 4; ++k) x[k] = _mm_mul_epu32(x[k], y[k]);
  __builtin_memcpy(&a, x, sizeof a);
  return a;
#elif defined(__ARM_NEON)
  uint64x2_t x[4], y[4];
  __builtin_memcpy(x, &a, sizeof a);
  __builtin_memcpy(y, &b, sizeof b);
  for (int k = 0; k < 4; ++k) x[k] = vmull_u32(vmovn_u64(x[k]), vmovn_u64(y[k]));
  __builtin_memcpy(&a, x, sizeof a);
  return a;
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

inline constexpr int kPhiloxRounds = 10;

struct PhiloxKeys {
  std::uint32_t round[kPhiloxRounds][2];

  explicit PhiloxKeys(std::uint64_t key) {
    for (int k = 0; k < kPhiloxRounds; ++k) {
      round[k][0] = std::uint32_t(key) + std::uint32_t(k) * 0x9E3779B9u;
      round[k][1] = std::uint32_t(key >> 32) + std::uint32_t(k) * 0xBB67AE85u;
    }
  }
};

FUSEDSTEP_INLINE void philox(Pairs (&c)[4], const PhiloxKeys& keys) {
  const Pairs m0 = Pairs{} + 0xD2511F53u, m1 = Pairs{} + 0xCD9E8D57u;
  for (int k = 0; k < kPhiloxRounds; ++k) {
    const Pairs p0 = multiply_words(c[0], m0), p1 = multiply_words(c[2], m1);
    c[0] = (p1 >> 32) ^ c[1] ^ (Pairs{} + keys.round[k][0]);
    c[1] = p1;
    c[2] = (p0 >> 32) ^ c[3] ^ (Pairs{} + keys.round[k][1]);
    c[3] = p0;
  }
}

// Words of 16 counters, all that elements 64 g to 64 g + 63 have: word k of counter 16 g + j is that of element 16 k +
// j.
inline constexpr std::int64_t kPhiloxGroup = 4 * kLanes;

// The words of groups [first, first + groups), to memory. `upper` is the upper half of every counter. Meanwhile the
// elements of type T at `ahead` are fetched.
template <class T>
inline void philox_groups(const PhiloxKeys& keys, std::uint64_t upper, std::uint64_t first, std::int64_t groups,
                          std::uint32_t* words, const T* ahead) {
  // Even lanes of words and odd ones.
  const Pairs even = {0, 2, 4, 6, 8, 10, 12, 14};
  const Pairs low = Pairs{} + 0xffffffffu, third = Pairs{} + upper, fourth = Pairs{} + (upper >> 32);
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t k = 0; k < kPhiloxGroup; k += 64 / std::int64_t(sizeof(T))) {
      __builtin_prefetch(ahead + g * kPhiloxGroup + k);
    }
    const Pairs counter = even + (first + std::uint64_t(g)) * 16;
    Pairs a[4] = {counter, counter >> 32, third, fourth};
    Pairs b[4] = {counter + 1, (counter + 1) >> 32, third, fourth};
    philox(a, keys);
    philox(b, keys);
    for (int k = 0; k < 4; ++k) {
      const Pairs both = (a[k] & low) | (b[k] << 32);
      __builtin_memcpy(words + g * kPhiloxGroup + k * kLanes, &both, sizeof both);
    }
  }
}

}  // namespace fusedstep::FUSEDSTEP_SET
