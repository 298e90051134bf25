// Masks of lanes: of the first n, of a bit for each lane, and comparisons as bits.
#pragma once

#include "kernels/pack/pack.h"

namespace fusedstep::FUSEDSTEP_SET {

// Bits of the first n lanes.
FUSEDSTEP_INLINE unsigned lane_bits(std::int64_t n) { return n >= kLanes ? 0xffffu : (1u << n) - 1u; }

// Ones, then zeros. A mask of n lanes begins n lanes before the middle.
inline constexpr int kMaskTable = 32;
alignas(64) inline constexpr std::int32_t kLaneMasks[2 * kMaskTable] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                                                        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                                                        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
// The mask of the first n lanes, n <= 16, of 4 or 8 bytes each, as numbers of 4 bytes.
template <class V>
FUSEDSTEP_INLINE Pack<std::int32_t, int(sizeof(V) / 4)> lane_mask(std::int64_t n, std::int64_t from = 0) {
  using M = Pack<std::int32_t, int(sizeof(V) / 4)>;
  constexpr int items = int(sizeof(Lane<V>) / 4);
  if constexpr (is_pair<M>) {
    constexpr int half = int(sizeof(V) / 8);
    return {lane_mask<decltype(V::low)>(n, from), lane_mask<decltype(V::low)>(n, from + half)};
  } else {
    M mask;
    __builtin_memcpy(&mask, kLaneMasks + kMaskTable - n * items + from, sizeof mask);
    return mask;
  }
}

// The first n lanes, and zeros behind them, or the lanes of `behind`.
template <class V>
FUSEDSTEP_INLINE V first(V v, std::int64_t n) {
  constexpr int lanes = lanes_of<V>;
  if (n >= lanes) return v;
  if constexpr (is_pair<V> && kVectorBytes == 64) {
    return n >= lanes / 2 ? V{v.low, first(v.high, n - lanes / 2)} : V{first(v.low, n), decltype(V::low){}};
  } else if constexpr (kVectorBytes == 64 && sizeof(V) == 64) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Lane<V>) == 4) return (V)_mm512_maskz_mov_ps(__mmask16((1u << n) - 1u), (__m512)v);
    if constexpr (sizeof(Lane<V>) == 8) return (V)_mm512_maskz_mov_pd(__mmask8((1u << n) - 1u), (__m512d)v);
#endif
  } else {
    const auto mask = lane_mask<V>(n);
    return as<V>(as<decltype(lane_mask<V>(n))>(v) & mask);
  }
}
template <class V>
FUSEDSTEP_INLINE V first(V v, std::int64_t n, V behind) {
  if (n >= lanes_of<V>) return v;
  if constexpr (is_pair<V> && kVectorBytes == 64) {
    constexpr int half = lanes_of<V> / 2;
    return n >= half ? V{v.low, first(v.high, n - half, behind.high)} : V{first(v.low, n, behind.low), behind.high};
  } else if constexpr (kVectorBytes == 64 && sizeof(V) == 64) {
#if defined(__AVX512F__)
    const unsigned bits = (1u << n) - 1u;
    if constexpr (sizeof(Lane<V>) == 4) return (V)_mm512_mask_mov_ps((__m512)behind, __mmask16(bits), (__m512)v);
    if constexpr (sizeof(Lane<V>) == 8) return (V)_mm512_mask_mov_pd((__m512d)behind, __mmask8(bits), (__m512d)v);
#endif
  } else {
    using M = decltype(lane_mask<V>(n));
    const M mask = lane_mask<V>(n);
    return as<V>((as<M>(v) & mask) | (as<M>(behind) & ~mask));
  }
}

// A bit for every lane in which the comparison held.
template <class M>
FUSEDSTEP_INLINE unsigned bits_of(M held) {
  if constexpr (is_pair<M>) {
    return bits_of(held.low) | bits_of(held.high) << lanes_of<decltype(M::low)>;
  } else {
#if defined(__AVX2__)
    if constexpr (sizeof(M) == 32 && sizeof(Lane<M>) == 4) return unsigned(_mm256_movemask_ps((__m256)held));
    if constexpr (sizeof(M) == 32 && sizeof(Lane<M>) == 8) return unsigned(_mm256_movemask_pd((__m256d)held));
#elif defined(__SSE2__)
    if constexpr (sizeof(Lane<M>) == 4) return unsigned(_mm_movemask_ps((__m128)held));
    if constexpr (sizeof(Lane<M>) == 8) return unsigned(_mm_movemask_pd((__m128d)held));
#elif defined(__ARM_NEON)
    if constexpr (sizeof(Lane<M>) == 4) {
      const M bit = {1, 2, 4, 8};
      return vaddvq_u32((uint32x4_t)(held & bit));
    }
    if constexpr (sizeof(Lane<M>) == 8) {
      const M bit = {1, 2};
      return unsigned(vaddvq_u64((uint64x2_t)(held & bit)));
    }
#endif
    unsigned bits = 0;
    for (int k = 0; k < lanes_of<M>; ++k) bits |= unsigned(held[k] != 0) << k;
    return bits;
  }
}

// The bit of each lane, once for every 4 bytes of the lane.
template <int Bytes>
inline constexpr auto lane_bit_table = [] {
  struct {
    alignas(64) std::int32_t bit[kLanes * Bytes / 4] = {};
  } table;
  for (int k = 0; k < kLanes * Bytes / 4; ++k) table.bit[k] = 1 << (k * 4 / Bytes);
  return table;
}();
template <class V>
FUSEDSTEP_INLINE V keep_from(V v, Pack<std::int32_t, kVectorBytes / 4> bits, int at) {
  if constexpr (is_pair<V>) {
    return {keep_from(v.low, bits, at), keep_from(v.high, bits, at + int(sizeof(V) / 8))};
  } else {
    using M = Pack<std::int32_t, int(sizeof(V) / 4)>;
    M bit;
    __builtin_memcpy(&bit, lane_bit_table<int(sizeof(Lane<V>))>.bit + at, sizeof bit);
    return (V)((M)v & ((bits & bit) == bit));
  }
}
// Zeros in the lanes, 16 at most, whose bit is 0.
template <class V>
FUSEDSTEP_INLINE V keep(V v, unsigned bits) {
#if defined(__AVX512F__)
  if constexpr (is_pair<V>) {
    return {keep(v.low, bits), keep(v.high, bits >> lanes_of<decltype(V::low)>)};
  } else if constexpr (sizeof(Lane<V>) == 4) {
    return (V)_mm512_maskz_mov_ps(__mmask16(bits), (__m512)v);
  } else {
    return (V)_mm512_maskz_mov_pd(__mmask8(bits), (__m512d)v);
  }
#else
  return keep_from(v, spread<Pack<std::int32_t, kVectorBytes / 4> >(std::int32_t(bits)), 0);
#endif
}

}  // namespace fusedstep::FUSEDSTEP_SET
