// Numbers of 16 bits: stored only, the arithmetic on them is of floats. Stores round to nearest, ties to even.
#pragma once

#include "kernels/vector.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Float16 {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

typedef std::uint16_t Words __attribute__((vector_size(32)));
typedef std::uint32_t Bits __attribute__((vector_size(64)));

FUSEDSTEP_INLINE Words load_words(const void* p, std::int64_t n) {
#if defined(__AVX512BW__)
  if (n < kLanes) return (Words)_mm256_maskz_loadu_epi16(__mmask16(lane_bits(n)), p);
#else
  alignas(32) std::uint16_t part[kLanes] = {};
  if (n < kLanes) {
    copy_items(part, static_cast<const std::uint16_t*>(p), n);
    p = part;
  }
#endif
  Words w;
  __builtin_memcpy(&w, p, sizeof w);
  return w;
}

FUSEDSTEP_INLINE void store_words(void* p, Words w, std::int64_t n) {
  if (n >= kLanes) {
    __builtin_memcpy(p, &w, sizeof w);
    return;
  }
#if defined(__AVX512BW__)
  _mm256_mask_storeu_epi16(p, __mmask16(lane_bits(n)), (__m256i)w);
#else
  alignas(32) std::uint16_t part[kLanes];
  __builtin_memcpy(part, &w, sizeof w);
  copy_items(static_cast<std::uint16_t*>(p), part, n);
#endif
}

// p must be a multiple of 32.
FUSEDSTEP_INLINE void stream_words(void* p, Words w) {
#if defined(__AVX__)
  _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)w);
#elif defined(__SSE2__)
  __m128i part[2];
  __builtin_memcpy(part, &w, sizeof w);
  _mm_stream_si128(static_cast<__m128i*>(p), part[0]);
  _mm_stream_si128(static_cast<__m128i*>(p) + 1, part[1]);
#else
  store_words(p, w, kLanes);
#endif
}

FUSEDSTEP_INLINE Bits choose(Ints condition, Bits yes, Bits no) {
  return ((Bits)condition & yes) | (~(Bits)condition & no);
}

FUSEDSTEP_INLINE Floats decode(BFloat16, Words w) { return (Floats)(__builtin_convertvector(w, Bits) << 16); }

FUSEDSTEP_INLINE Words encode(BFloat16, Floats v) {
  const Bits bits = (Bits)v;
  const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Bits nan = (bits & 0x80000000u) | 0x7fc00000u;
  return __builtin_convertvector(choose(v == v, rounded, nan) >> 16, Words);
}

#if defined(__AVX512F__)
FUSEDSTEP_INLINE Floats decode(Float16, Words w) { return (Floats)_mm512_maskz_cvtph_ps(0xffff, (__m256i)w); }
FUSEDSTEP_INLINE Words encode(Float16, Floats v) {
  return (Words)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__F16C__)
FUSEDSTEP_INLINE Floats decode(Float16, Words w) {
  __m128i half[2];
  __builtin_memcpy(half, &w, sizeof w);
  const __m256 part[2] = {_mm256_cvtph_ps(half[0]), _mm256_cvtph_ps(half[1])};
  Floats v;
  __builtin_memcpy(&v, part, sizeof v);
  return v;
}
FUSEDSTEP_INLINE Words encode(Float16, Floats v) {
  __m256 part[2];
  __builtin_memcpy(part, &v, sizeof v);
  const __m128i half[2] = {_mm256_cvtps_ph(part[0], _MM_FROUND_TO_NEAREST_INT),
                           _mm256_cvtps_ph(part[1], _MM_FROUND_TO_NEAREST_INT)};
  Words w;
  __builtin_memcpy(&w, half, sizeof w);
  return w;
}
#else
// After Giesen, "float->half variants", 2012: what is below the least normal number is rounded by an addition. Through
// memory and not inlined, so that no vector crosses a call.
FUSEDSTEP_INLINE Floats decode_half(Words w) {
  const Bits all = __builtin_convertvector(w, Bits);
  const Bits magnitude = (all & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
  const Bits normal = magnitude + (112u << 23);
  const Bits special = normal + (112u << 23);
  const Bits quiet = special | choose((Ints)(magnitude > 0x0f800000), Bits{} + 0x00400000u, Bits{});
  const Floats subnormal = (Floats)(normal + (1u << 23)) - (Floats)(Bits{} + (113u << 23));
  const Bits finite = choose((Ints)(exponent == 0), (Bits)subnormal, normal);
  const Bits value = choose((Ints)(exponent == 0x0f800000), quiet, finite);
  return (Floats)(value | ((all & 0x8000) << 16));
}
FUSEDSTEP_INLINE Words encode_half(Floats v) {
  const Bits all = (Bits)v, magnitude = all & 0x7fffffff;
  const Bits nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  const Bits special = choose((Ints)(magnitude > 0x7f800000), nan, Bits{} + 0x7c00u);
  const Floats half_unit = (Floats)(Bits{} + (126u << 23));
  const Bits subnormal = (Bits)((Floats)magnitude + half_unit) - (Bits)half_unit;
  const Bits normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const Bits finite = choose((Ints)(magnitude < (113u << 23)), subnormal, normal);
  const Bits value = choose((Ints)(magnitude >= (143u << 23)), special, finite);
  return __builtin_convertvector(value | ((all >> 16) & 0x8000), Words);
}
template <class From, class To>
__attribute__((noinline)) void convert_half(const From* from, To* to) {
  if constexpr (sizeof(From) < sizeof(To)) {
    *to = decode_half(*from);
  } else {
    *to = encode_half(*from);
  }
}
FUSEDSTEP_INLINE Floats decode(Float16, Words w) {
  Floats v;
  convert_half(&w, &v);
  return v;
}
FUSEDSTEP_INLINE Words encode(Float16, Floats v) {
  Words w;
  convert_half(&v, &w);
  return w;
}
#endif

#define FUSEDSTEP_NARROW(T)                                                                          \
  FUSEDSTEP_INLINE Floats load(const T* p, std::int64_t n) { return decode(T{}, load_words(p, n)); } \
  FUSEDSTEP_INLINE void store(T* p, Floats v, std::int64_t n) { store_words(p, encode(T{}, v), n); } \
  FUSEDSTEP_INLINE void stream(T* p, Floats v) { stream_words(p, encode(T{}, v)); }                  \
  FUSEDSTEP_INLINE Wide load_wide(const T* p, std::int64_t n) { return widen(load(p, n)); }
FUSEDSTEP_NARROW(Float16)
FUSEDSTEP_NARROW(BFloat16)
#undef FUSEDSTEP_NARROW

// The dtype of the arithmetic on a stored one, and sixteen lanes of it.
template <class T>
struct Arithmetic {
  using Scalar = float;
  using Lanes = Floats;
  static constexpr bool narrow = sizeof(T) < sizeof(float);
};
template <>
struct Arithmetic<double> {
  using Scalar = double;
  using Lanes = Wide;
  static constexpr bool narrow = false;
};

// Not inlined, as they are shared by all that computes on blocks.
template <class T>
__attribute__((noinline)) void decode_block(const T* from, float* to, std::int64_t n) {
  each_lanes(n,
             [&](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA { store(to + i, load(from + i, lanes), lanes); });
}
template <class T>
__attribute__((noinline)) void encode_block(const float* from, T* to, std::int64_t n, bool streamed) {
  write_lanes(to, n, streamed,
              [&](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA { return load(from + i, lanes); });
}

}  // namespace fusedstep::FUSEDSTEP_SET
