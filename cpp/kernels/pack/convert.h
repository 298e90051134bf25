// Conversions between lanes of different widths. GCC compiles its own, __builtin_convertvector, lane by lane.
#pragma once

#include "kernels/pack/memory.h"

namespace fusedstep::FUSEDSTEP_SET {

// Floats as doubles.
template <class V>
FUSEDSTEP_INLINE auto widen(V v) {
  using To = Like<double, V>;
  if constexpr (std::is_same_v<V, To>) {
    return v;
  } else if constexpr (is_pair<V>) {
    return To{widen(v.low), widen(v.high)};
  } else {
#if defined(__AVX512F__)
    // GCC warns of the unmasked form.
    if constexpr (sizeof(V) == 32) return (To)_mm512_maskz_cvtps_pd(0xff, (__m256)v);
    if constexpr (sizeof(V) == 64) return To{widen(lower(v)), widen(upper(v))};
#elif defined(__AVX2__)
    if constexpr (sizeof(V) == 16) return (To)_mm256_cvtps_pd((__m128)v);
    if constexpr (sizeof(V) == 32) return To{widen(lower(v)), widen(upper(v))};
#elif defined(__SSE2__)
    using Half = decltype(To::low);
    return To{(Half)_mm_cvtps_pd((__m128)v), (Half)_mm_cvtps_pd(_mm_movehl_ps((__m128)v, (__m128)v))};
#elif defined(__ARM_NEON)
    using Half = decltype(To::low);
    return To{(Half)vcvt_f64_f32(vget_low_f32((float32x4_t)v)), (Half)vcvt_high_f64_f32((float32x4_t)v)};
#else
    using Half = decltype(To::low);
    return To{Half{v[0], v[1]}, Half{v[2], v[3]}};
#endif
  }
}

// The same from memory, where the processor converts as it loads, without shuffles.
template <class To>
FUSEDSTEP_INLINE To load_widened(const float* p) {
  if constexpr (is_pair<To>) {
    return {load_widened<decltype(To::low)>(p), load_widened<decltype(To::low)>(p + lanes_of<To> / 2)};
  } else {
#if defined(__AVX512F__)
    return (To)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p));
#elif defined(__AVX2__)
    return (To)_mm256_cvtps_pd(_mm_loadu_ps(p));
#elif defined(__SSE2__)
    return (To)_mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif defined(__ARM_NEON)
    return (To)vcvt_f64_f32(vld1_f32(p));
#else
    return To{p[0], p[1]};
#endif
  }
}
template <int N = kLanes>
FUSEDSTEP_INLINE Pack<double, N> load_wide(const float* p, std::int64_t n = N) {
  if (n >= N) return load_widened<Pack<double, N>>(p);
  return widen(load<N>(p, n));
}
template <int N = kLanes>
FUSEDSTEP_INLINE Pack<double, N> load_wide(const double* p, std::int64_t n = N) {
  return load<N>(p, n);
}

// Words and bytes as numbers of 32 bits; signed bytes are sign-extended. Longer than other functions: it lists what
// each set has an instruction for.
template <class V>
FUSEDSTEP_INLINE Like<std::uint32_t, V> bits_from(V v) {
  using To = Like<std::uint32_t, V>;
  constexpr bool bytes = sizeof(Lane<V>) == 1;
  [[maybe_unused]] constexpr bool is_signed = std::is_signed_v<Lane<V>>;
  if constexpr (is_pair<V>) {
    return {bits_from(v.low), bits_from(v.high)};
  } else {
#if defined(__AVX512F__)
    if constexpr (bytes && is_signed) return (To)_mm512_maskz_cvtepi8_epi32(0xffff, (__m128i)v);
    if constexpr (bytes && !is_signed) return (To)_mm512_maskz_cvtepu8_epi32(0xffff, (__m128i)v);
    if constexpr (!bytes) return (To)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)v);
#elif defined(__AVX2__)
    if constexpr (bytes) {
      using Half = decltype(To::low);
      const auto half = [](__m128i x) FUSEDSTEP_LAMBDA {
        return is_signed ? (Half)_mm256_cvtepi8_epi32(x) : (Half)_mm256_cvtepu8_epi32(x);
      };
      return {half((__m128i)v), half(_mm_unpackhi_epi64((__m128i)v, (__m128i)v))};
    } else if constexpr (sizeof(V) == 16) {
      return (To)_mm256_cvtepu16_epi32((__m128i)v);
    } else {
      using Half = decltype(To::low);
      return {(Half)_mm256_cvtepu16_epi32((__m128i)lower(v)), (Half)_mm256_cvtepu16_epi32((__m128i)upper(v))};
    }
#else
    using Half = decltype(To::low);
    if constexpr (bytes) {
      using Words8 [[maybe_unused]] = Pack<std::conditional_t<is_signed, std::int16_t, std::uint16_t>, 8>;
#if defined(__SSE2__)
      // Zeros behind the lanes, or before them, whence a shift brings them down with their sign.
      const __m128i zero = _mm_setzero_si128();
      if constexpr (is_signed) {
        const auto quarter = [&](__m128i words, bool far) FUSEDSTEP_LAMBDA {
          const __m128i top = far ? _mm_unpackhi_epi16(zero, words) : _mm_unpacklo_epi16(zero, words);
          return (decltype(Half::low))_mm_srai_epi32(top, 24);
        };
        const __m128i near = _mm_unpacklo_epi8(zero, (__m128i)v), far = _mm_unpackhi_epi8(zero, (__m128i)v);
        return {{quarter(near, false), quarter(near, true)}, {quarter(far, false), quarter(far, true)}};
      } else {
        return {bits_from((Words8)_mm_unpacklo_epi8((__m128i)v, zero)),
                bits_from((Words8)_mm_unpackhi_epi8((__m128i)v, zero))};
      }
#elif defined(__ARM_NEON)
      if constexpr (is_signed) {
        return {bits_from((Words8)vmovl_s8(vget_low_s8((int8x16_t)v))), bits_from((Words8)vmovl_high_s8((int8x16_t)v))};
      } else {
        return {bits_from((Words8)vmovl_u8(vget_low_u8((uint8x16_t)v))),
                bits_from((Words8)vmovl_high_u8((uint8x16_t)v))};
      }
#else
      To to;
      for (int k = 0; k < 4; ++k) {
        to.low.low[k] = std::uint32_t(v[k]);
        to.low.high[k] = std::uint32_t(v[4 + k]);
        to.high.low[k] = std::uint32_t(v[8 + k]);
        to.high.high[k] = std::uint32_t(v[12 + k]);
      }
      return to;
#endif
    } else {
#if defined(__SSE2__)
      return {(Half)_mm_unpacklo_epi16((__m128i)v, _mm_setzero_si128()),
              (Half)_mm_unpackhi_epi16((__m128i)v, _mm_setzero_si128())};
#elif defined(__ARM_NEON)
      if constexpr (is_signed) {
        return {(Half)vmovl_s16(vget_low_s16((int16x8_t)v)), (Half)vmovl_high_s16((int16x8_t)v)};
      } else {
        return {(Half)vmovl_u16(vget_low_u16((uint16x8_t)v)), (Half)vmovl_high_u16((uint16x8_t)v)};
      }
#else
      return {Half{v[0], v[1], v[2], v[3]}, Half{v[4], v[5], v[6], v[7]}};
#endif
    }
#endif
  }
}
// From memory; E is the type of the items.
template <class E>
FUSEDSTEP_INLINE Bits load_bits(const void* p, std::int64_t n) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if (n >= kLanes) {
    using Half = decltype(Bits::low);
    const auto half = [](const void* from) FUSEDSTEP_LAMBDA {
      const auto* at = static_cast<const __m128i*>(from);
      if constexpr (sizeof(E) > 1) return (Half)_mm256_cvtepu16_epi32(_mm_loadu_si128(at));
      if constexpr (sizeof(E) == 1 && std::is_signed_v<E>) return (Half)_mm256_cvtepi8_epi32(_mm_loadl_epi64(at));
      if constexpr (sizeof(E) == 1 && !std::is_signed_v<E>) return (Half)_mm256_cvtepu8_epi32(_mm_loadl_epi64(at));
    };
    return {half(p), half(static_cast<const E*>(p) + kLanes / 2)};
  }
#endif
  return bits_from(load_pack<Pack<E, kLanes>>(p, n));
}

// A comparison of lanes of 4 bytes as one of lanes of 8.
template <class M>
FUSEDSTEP_INLINE Like<std::int64_t, M> twice(M held) {
  using To = Like<std::int64_t, M>;
  if constexpr (is_pair<M>) {
    return {twice(held.low), twice(held.high)};
  } else {
#if defined(__AVX2__)
    using Half = decltype(To::low);
    return {(Half)_mm256_cvtepi32_epi64((__m128i)lower(held)), (Half)_mm256_cvtepi32_epi64((__m128i)upper(held))};
#elif defined(__SSE2__)
    using Half = decltype(To::low);
    return {(Half)_mm_unpacklo_epi32((__m128i)held, (__m128i)held),
            (Half)_mm_unpackhi_epi32((__m128i)held, (__m128i)held)};
#elif defined(__ARM_NEON)
    using Half = decltype(To::low);
    return {(Half)vmovl_s32(vget_low_s32((int32x4_t)held)), (Half)vmovl_high_s32((int32x4_t)held)};
#else
    return To{{held[0], held[1]}, {held[2], held[3]}};
#endif
  }
}

// The lowest 16 bits of each lane; what is above them must be 0.
template <class V>
FUSEDSTEP_INLINE auto low_words(V v) {
  using To = Like<std::uint16_t, V>;
#if defined(__AVX512F__)
  return (To)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v);
#else
  if constexpr (is_pair<To>) {
    return To{low_words(v.low), low_words(v.high)};
  } else {
#if defined(__AVX2__)
    return (To)_mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)v.low, (__m256i)v.high), 0xd8);
#elif defined(__SSE2__)
    const auto sign_of = [](auto x) FUSEDSTEP_LAMBDA { return _mm_srai_epi32(_mm_slli_epi32((__m128i)x, 16), 16); };
    return (To)_mm_packs_epi32(sign_of(v.low), sign_of(v.high));
#elif defined(__ARM_NEON)
    return (To)vuzp1q_u16((uint16x8_t)v.low, (uint16x8_t)v.high);
#else
    To to;
    for (int k = 0; k < 8; ++k) to[k] = std::uint16_t(k < 4 ? v.low[k] : v.high[k - 4]);
    return to;
#endif
  }
#endif
}
// The highest 16 bits.
template <class V>
FUSEDSTEP_INLINE auto high_words(V v) {
  using To = Like<std::uint16_t, V>;
  if constexpr (is_pair<To>) {
    return To{high_words(v.low), high_words(v.high)};
  } else {
#if defined(__SSE2__) && !defined(__AVX2__)
    return (To)_mm_packs_epi32(_mm_srai_epi32((__m128i)v.low, 16), _mm_srai_epi32((__m128i)v.high, 16));
#elif defined(__ARM_NEON)
    return (To)vuzp2q_u16((uint16x8_t)v.low, (uint16x8_t)v.high);
#else
    return low_words(v >> 16);
#endif
  }
}
#if !defined(__SSE2__)
// Words below 2^8 as bytes.
FUSEDSTEP_INLINE Bytes narrow_words(Words v) {
#if defined(__ARM_NEON)
  return (Bytes)vuzp1q_u8((uint8x16_t)v.low, (uint8x16_t)v.high);
#else
  Bytes to;
  for (int k = 0; k < 8; ++k) {
    to[k] = std::uint8_t(v.low[k]);
    to[8 + k] = std::uint8_t(v.high[k]);
  }
  return to;
#endif
}
#endif
// The lowest byte of each lane; the bits above must be 0 unless the set is AVX-512, which ignores them.
FUSEDSTEP_INLINE Bytes low_bytes(Bits v) {
#if defined(__AVX512F__)
  return (Bytes)_mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v);
#elif defined(__AVX2__)
  const __m256i words = _mm256_packus_epi32((__m256i)v.low, (__m256i)v.high);
  // In fours: 0 and 2 in its lower half, 1 and 3 in the upper one.
  const __m128i near = _mm256_castsi256_si128(words), far = _mm256_extracti128_si256(words, 1);
  const __m128i bytes = _mm_packus_epi16(near, far);
  return (Bytes)_mm_shuffle_epi32(bytes, 0xd8);
#elif defined(__SSE2__)
  const __m128i near = _mm_packs_epi32((__m128i)v.low.low, (__m128i)v.low.high);
  const __m128i far = _mm_packs_epi32((__m128i)v.high.low, (__m128i)v.high.high);
  return (Bytes)_mm_packus_epi16(near, far);
#else
  return narrow_words(low_words(v));
#endif
}

// many_bytes: 32 numbers below 2^15 as bytes. sign_bytes: the signs of 32 numbers, 0x80 or 0. Both give the bytes in an
// order that depends on the set; in_order() sorts them. at_words() works on the words in between, half as many vectors.
using ManyBytes = Pack<std::uint8_t, 2 * kLanes>;
using WordsVector = Pack<std::int16_t, kVectorBytes / 2>;
template <class F>
FUSEDSTEP_INLINE ManyBytes many_bytes(Bits near, Bits far, F at_words) {
#if defined(__AVX512F__)
  const auto half = [](Bits v) FUSEDSTEP_LAMBDA {
    return (Pack<std::int16_t, kLanes>)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v);
  };
  const auto words = joined<WordsVector>(half(near), half(far), std::make_integer_sequence<int, 2 * kLanes>());
  return (ManyBytes)_mm512_maskz_cvtepi16_epi8(~0u, (__m512i)at_words(words));
#elif defined(__AVX2__)
  const auto words = [&](Bits v) FUSEDSTEP_LAMBDA {
    return (__m256i)at_words((WordsVector)_mm256_packus_epi32((__m256i)v.low, (__m256i)v.high));
  };
  return (ManyBytes)_mm256_packus_epi16(words(near), words(far));
#elif defined(__SSE2__)
  const auto words = [&](auto v) FUSEDSTEP_LAMBDA {
    return (__m128i)at_words((WordsVector)_mm_packs_epi32((__m128i)v.low, (__m128i)v.high));
  };
  const auto half = [&](Bits v) FUSEDSTEP_LAMBDA { return (Bytes)_mm_packus_epi16(words(v.low), words(v.high)); };
  return {half(near), half(far)};
#else
  const auto half = [&](Bits v) FUSEDSTEP_LAMBDA {
    const auto words = low_words(v);
    return narrow_words({(Pack<std::uint16_t, 8>)at_words((WordsVector)words.low),
                         (Pack<std::uint16_t, 8>)at_words((WordsVector)words.high)});
  };
  return {half(near), half(far)};
#endif
}
FUSEDSTEP_INLINE ManyBytes sign_bytes(Bits near, Bits far) {
#if defined(__AVX512F__)
  return many_bytes(near >> 24, far >> 24, [](auto words) FUSEDSTEP_LAMBDA { return words & 0x80; });
#elif defined(__AVX2__)
  // Narrower numbers with a sign keep it.
  const auto words = [](Bits v) FUSEDSTEP_LAMBDA { return _mm256_packs_epi32((__m256i)v.low, (__m256i)v.high); };
  return (ManyBytes)_mm256_packs_epi16(words(near), words(far)) & 0x80;
#elif defined(__SSE2__)
  const auto words = [](auto v) FUSEDSTEP_LAMBDA { return _mm_packs_epi32((__m128i)v.low, (__m128i)v.high); };
  const auto half = [&](Bits v) FUSEDSTEP_LAMBDA { return (Bytes)_mm_packs_epi16(words(v.low), words(v.high)) & 0x80; };
  return {half(near), half(far)};
#else
  const auto half = [](Bits v) FUSEDSTEP_LAMBDA { return narrow_words(high_words(v) >> 8) & 0x80; };
  return {half(near), half(far)};
#endif
}
FUSEDSTEP_INLINE ManyBytes in_order(ManyBytes bytes) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (ManyBytes)_mm256_permutevar8x32_epi32((__m256i)bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#else
  return bytes;
#endif
}

}  // namespace fusedstep::FUSEDSTEP_SET
