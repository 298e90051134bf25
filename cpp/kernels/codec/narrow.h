// float16 and bfloat16: they are only stored; arithmetic is done in float. Stores round to nearest, ties to even.
#pragma once

#include "kernels/pack/vectors.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Float16 {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

// The words of the first n lanes: loads, stores, and stores past the cache, aligned to 32 bytes.
FUSEDSTEP_INLINE Words load_words(const void* p, std::int64_t n) { return load_pack<Words>(p, n); }
FUSEDSTEP_INLINE void store_words(void* p, Words w, std::int64_t n) { store_pack(p, w, n); }
FUSEDSTEP_INLINE void stream_words(void* p, Words w) { stream_pack(p, w); }

template <class W>
FUSEDSTEP_INLINE Like<float, W> decode(BFloat16, W w) {
  using V = Like<float, W>;
  if constexpr (is_pair<W>) {
    return {decode(BFloat16{}, w.low), decode(BFloat16{}, w.high)};
  } else {
#if defined(__SSE2__) && !defined(__AVX2__)
    using Half = decltype(V::low);
    return {(Half)_mm_unpacklo_epi16(_mm_setzero_si128(), (__m128i)w),
            (Half)_mm_unpackhi_epi16(_mm_setzero_si128(), (__m128i)w)};
#elif defined(__ARM_NEON)
    using Half = decltype(V::low);
    return {(Half)vshll_n_u16(vget_low_u16((uint16x8_t)w), 16), (Half)vshll_high_n_u16((uint16x8_t)w, 16)};
#else
    return as<V>(bits_from(w) << 16);
#endif
  }
}

// A NaN as it is stored: quiet, with its sign.
template <class V>
FUSEDSTEP_INLINE V narrow_nan(V bits) {
  return (bits & 0x80000000u) | 0x7fc00000u;
}

FUSEDSTEP_INLINE Words encode(BFloat16, Floats v) {
  const Bits bits = as<Bits>(v);
  const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return high_words(select(v == v, rounded, narrow_nan(bits)));
}

#if defined(__F16C__) || defined(__AVX512F__)
template <class W>
FUSEDSTEP_INLINE Like<float, W> decode(Float16, W w) {
  using V = Like<float, W>;
#if defined(__AVX512F__)
  return (V)_mm512_maskz_cvtph_ps(0xffff, (__m256i)w);
#else
  using Part = Pack<float, 8>;
  if constexpr (is_pair<V>) {
    return {(Part)_mm256_cvtph_ps((__m128i)lower(w)), (Part)_mm256_cvtph_ps((__m128i)upper(w))};
  } else {
    return (V)_mm256_cvtph_ps((__m128i)w);
  }
#endif
}
FUSEDSTEP_INLINE Words encode(Float16, Floats v) {
#if defined(__AVX512F__)
  return (Words)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
#else
  return (Words)_mm256_set_m128i(_mm256_cvtps_ph((__m256)v.high, _MM_FROUND_TO_NEAREST_INT),
                                 _mm256_cvtps_ph((__m256)v.low, _MM_FROUND_TO_NEAREST_INT));
#endif
}
#elif defined(__ARM_NEON)
template <class W>
FUSEDSTEP_INLINE Like<float, W> decode(Float16, W w) {
  if constexpr (is_pair<W>) {
    return {decode(Float16{}, w.low), decode(Float16{}, w.high)};
  } else {
    using Half = Pack<float, 4>;
    const float16x8_t halves = vreinterpretq_f16_u16((uint16x8_t)w);
    return {(Half)vcvt_f32_f16(vget_low_f16(halves)), (Half)vcvt_high_f32_f16(halves)};
  }
}
template <class V>
FUSEDSTEP_INLINE Like<std::uint16_t, V> encode(Float16, V v) {
  using To = Like<std::uint16_t, V>;
  if constexpr (is_pair<To>) {
    return {encode(Float16{}, v.low), encode(Float16{}, v.high)};
  } else {
    const float16x4_t low = vcvt_f16_f32((float32x4_t)v.low);
    return (To)vreinterpretq_u16_f16(vcvt_high_f16_f32(low, (float32x4_t)v.high));
  }
}
#else
// After Giesen, "float->half variants", 2012: an addition rounds the subnormal numbers.
template <class W>
FUSEDSTEP_INLINE Like<float, W> decode(Float16, W w) {
  using B = Like<std::uint32_t, W>;
  using V = Like<float, W>;
  const B all = bits_from(w);
  const B magnitude = (all & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
  const B normal = magnitude + (112u << 23);
  const B special = normal + (112u << 23);
  const B quiet = special | where(as<Like<std::int32_t, W>>(magnitude) > 0x0f800000, spread<B>(0x00400000u));
  const V subnormal = as<V>(normal + (1u << 23)) - as<V>(spread<B>(113u << 23));
  const B finite = select(exponent == 0, as<B>(subnormal), normal);
  const B value = select(exponent == 0x0f800000, quiet, finite);
  return as<V>(value | ((all & 0x8000) << 16));
}
FUSEDSTEP_INLINE Words encode_half(Floats v) {
  const Bits all = as<Bits>(v), magnitude = all & 0x7fffffff;
  const Ints order = as<Ints>(magnitude);
  const Bits nan = ((magnitude >> 13) & 0x3ff) | 0x7e00;
  const Bits special = select(order > 0x7f800000, nan, spread<Bits>(0x7c00u));
  const Floats half_unit = as<Floats>(spread<Bits>(126u << 23));
  const Bits subnormal = as<Bits>(as<Floats>(magnitude) + half_unit) - as<Bits>(half_unit);
  const Bits normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const Bits finite = select(order < (113 << 23), subnormal, normal);
  const Bits value = select(order >= (143 << 23), special, finite);
  return low_words(value | ((all >> 16) & 0x8000));
}
// Through memory and not inlined, so that no vector is passed in a call.
__attribute__((noinline)) inline void encode_half(const float* from, std::uint16_t* to) {
  store_pack(to, encode_half(load(from)));
}
FUSEDSTEP_INLINE Words encode(Float16, Floats v) {
  alignas(64) float from[kLanes];
  alignas(32) std::uint16_t to[kLanes];
  store(from, v);
  encode_half(from, to);
  return load_pack<Words>(to);
}
#endif

#define FUSEDSTEP_NARROW(T)                                                                          \
  template <int N = kLanes>                                                                          \
  FUSEDSTEP_INLINE Pack<float, N> load(const T* p, std::int64_t n = N) {                             \
    return decode(T{}, load_pack<Pack<std::uint16_t, N>>(p, n));                                     \
  }                                                                                                  \
  template <int N = kLanes>                                                                          \
  FUSEDSTEP_INLINE Pack<double, N> load_wide(const T* p, std::int64_t n = N) {                       \
    return widen(load<N>(p, n));                                                                     \
  }                                                                                                  \
  FUSEDSTEP_INLINE void store(T* p, Floats v, std::int64_t n) { store_words(p, encode(T{}, v), n); } \
  FUSEDSTEP_INLINE void stream(T* p, Floats v) { stream_words(p, encode(T{}, v)); }
FUSEDSTEP_NARROW(Float16)
FUSEDSTEP_NARROW(BFloat16)
#undef FUSEDSTEP_NARROW

// By stored dtype: the dtype of the arithmetic, and 16 lanes of it.
template <class T>
struct Arithmetic {
  using Scalar = float;
  using Lanes = Floats;
  static constexpr bool narrow = sizeof(T) < sizeof(float);
};
template <>
struct Arithmetic<double> {
  using Scalar = double;
  using Lanes = Doubles;
  static constexpr bool narrow = false;
};

// Not inlined: all kernels that work on blocks share them.
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
