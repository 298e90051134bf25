// Loads and stores of packs, one vector at a time. The last lanes of an array do not go through the stack either.
#pragma once

#include "kernels/pack/masks.h"

namespace fusedstep::FUSEDSTEP_SET {

template <class V>
FUSEDSTEP_INLINE V load_pack(const void* p) {
  if constexpr (is_pair<V>) {
    return {load_pack<decltype(V::low)>(p), load_pack<decltype(V::low)>(static_cast<const char*>(p) + sizeof(V) / 2)};
  } else {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
}
template <class V>
FUSEDSTEP_INLINE void store_pack(void* p, V v) {
  if constexpr (is_pair<V>) {
    store_pack(p, v.low);
    store_pack(static_cast<char*>(p) + sizeof(V) / 2, v.high);
  } else {
    __builtin_memcpy(p, &v, sizeof v);
  }
}

// A store past the cache; p must be aligned to the pack.
template <class V>
FUSEDSTEP_INLINE void stream_pack(void* p, V v) {
  if constexpr (is_pair<V>) {
    stream_pack(p, v.low);
    stream_pack(static_cast<char*>(p) + sizeof(V) / 2, v.high);
  } else {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) return _mm512_stream_ps(static_cast<float*>(p), (__m512)v);
#endif
#if defined(__AVX__)
    if constexpr (sizeof(V) == 32) return _mm256_stream_ps(static_cast<float*>(p), (__m256)v);
#endif
#if defined(__SSE2__)
    if constexpr (sizeof(V) == 16) return _mm_stream_ps(static_cast<float*>(p), (__m128)v);
#endif
    store_pack(p, v);
  }
}

// Streamed stores are weakly ordered: a fence, before another thread reads them.
FUSEDSTEP_INLINE void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Up to 8 bytes as a number, the first byte the lowest: two reads that touch or overlap.
FUSEDSTEP_INLINE std::uint64_t load_bytes_of(const void* p, std::int64_t bytes) {
  const auto at = [p]<class E>(E word, std::int64_t offset) FUSEDSTEP_LAMBDA {
    __builtin_memcpy(&word, static_cast<const char*>(p) + offset, sizeof word);
    return std::uint64_t(word);
  };
  if (bytes >= 8) return at(std::uint64_t(), 0);
  if (bytes >= 4) return at(std::uint32_t(), 0) | at(std::uint32_t(), bytes - 4) << (8 * (bytes - 4));
  if (bytes >= 2) return at(std::uint16_t(), 0) | at(std::uint16_t(), bytes - 2) << (8 * (bytes - 2));
  return bytes > 0 ? at(std::uint8_t(), 0) : 0;
}
FUSEDSTEP_INLINE void store_bytes_of(void* to, std::uint64_t word, std::int64_t bytes) {
  char* p = static_cast<char*>(to);
  const auto put = [&](auto part) FUSEDSTEP_LAMBDA {
    __builtin_memcpy(p, &part, sizeof part);
    p += sizeof part;
    word >>= 8 * sizeof part % 64;
  };
  if (bytes >= 8) return put(word);
  if (bytes & 4) put(std::uint32_t(word));
  if (bytes & 2) put(std::uint16_t(word));
  if (bytes & 1) put(std::uint8_t(word));
}

// The two halves as one vector.
template <class V, class Half, int... I>
FUSEDSTEP_INLINE V joined(Half low, Half high, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(low, high, I...);
}

// The first n lanes; zeros behind them.
template <class V>
FUSEDSTEP_INLINE V load_pack(const void* p, std::int64_t n) {
  constexpr int lanes = lanes_of<V>;
  constexpr std::int64_t item = sizeof(Lane<V>);
  const char* const far = static_cast<const char*>(p) + sizeof(V) / 2;
  if (n >= lanes) return load_pack<V>(p);
#if defined(__AVX512F__)
  if constexpr (!is_pair<V>) {
    const unsigned bits = (1u << n) - 1u;
    if constexpr (sizeof(V) == 64 && item == 4) return (V)_mm512_maskz_loadu_ps(__mmask16(bits), p);
    if constexpr (sizeof(V) == 64 && item == 8) return (V)_mm512_maskz_loadu_pd(__mmask8(bits), p);
    if constexpr (sizeof(V) == 32 && item == 2) return (V)_mm256_maskz_loadu_epi16(__mmask16(bits), p);
    if constexpr (sizeof(V) == 16 && item == 1) return (V)_mm_maskz_loadu_epi8(__mmask16(bits), p);
  }
#elif defined(__AVX2__)
  if constexpr (item >= 4 && sizeof(V) >= 32) {
    const auto load = [&]<class M>(M mask, const void* from) FUSEDSTEP_LAMBDA {
      return (Pack<float, 8>)_mm256_maskload_ps(static_cast<const float*>(from), (__m256i)mask);
    };
    if constexpr (sizeof(V) == 32) return (V)load(lane_mask<V>(n), p);
    if constexpr (sizeof(V) == 64) {
      const auto mask = lane_mask<V>(n);
      using Half = decltype(V::low);
      return {(Half)load(mask.low, p), (Half)load(mask.high, far)};
    }
  }
#endif
  if constexpr (is_pair<V>) {
    using Half = decltype(V::low);
    if (n >= lanes / 2) return {load_pack<Half>(p), load_pack<Half>(far, n - lanes / 2)};
    return {load_pack<Half>(p, n), Half{}};
  } else if constexpr (sizeof(V) > 16) {
    using Half = Pack<Lane<V>, lanes / 2>;
    constexpr auto all = std::make_integer_sequence<int, lanes>();
    if (n >= lanes / 2) return joined<V>(load_pack<Half>(p), load_pack<Half>(far, n - lanes / 2), all);
    return joined<V>(load_pack<Half>(p, n), Half{}, all);
  } else {
    const std::int64_t bytes = n * item;
    const Pack<std::uint64_t, 2> words = {load_bytes_of(p, bytes), bytes > 8 ? load_bytes_of(far, bytes - 8) : 0};
    return (V)words;
  }
}

// Masked stores are slow on some processors.
template <class V>
FUSEDSTEP_INLINE void store_pack(void* p, V v, std::int64_t n) {
  constexpr int lanes = lanes_of<V>;
  constexpr std::int64_t item = sizeof(Lane<V>);
  char* const far = static_cast<char*>(p) + sizeof(V) / 2;
  if (n >= lanes) return store_pack(p, v);
#if defined(__AVX512F__)
  if constexpr (!is_pair<V>) {
    const unsigned bits = (1u << n) - 1u;
    if constexpr (sizeof(V) == 64 && item == 4) return _mm512_mask_storeu_ps(p, __mmask16(bits), (__m512)v);
    if constexpr (sizeof(V) == 64 && item == 8) return _mm512_mask_storeu_pd(p, __mmask8(bits), (__m512d)v);
    if constexpr (sizeof(V) == 32 && item == 2) return _mm256_mask_storeu_epi16(p, __mmask16(bits), (__m256i)v);
    if constexpr (sizeof(V) == 16 && item == 1) return _mm_mask_storeu_epi8(p, __mmask16(bits), (__m128i)v);
  }
#endif
  if constexpr (sizeof(V) > 16) {
    auto part = lower(v);
    if (n >= lanes / 2) {
      store_pack(p, part);
      part = upper(v);
      p = far;
      n -= lanes / 2;
    }
    store_pack(p, part, n);
  } else {
    const auto words = (Pack<std::uint64_t, 2>)v;
    const std::int64_t bytes = n * item;
    store_bytes_of(p, words[0], bytes < 8 ? bytes : 8);
    if (bytes > 8) store_bytes_of(far, words[1], bytes - 8);
  }
}

// The first n lanes of an array in the dtype of the arithmetic.
template <int N = kLanes>
FUSEDSTEP_INLINE Pack<float, N> load(const float* p, std::int64_t n = N) {
  return load_pack<Pack<float, N>>(p, n);
}
template <int N = kLanes>
FUSEDSTEP_INLINE Pack<double, N> load(const double* p, std::int64_t n = N) {
  return load_pack<Pack<double, N>>(p, n);
}
FUSEDSTEP_INLINE void store(float* p, Floats v, std::int64_t n = kLanes) { store_pack(p, v, n); }
FUSEDSTEP_INLINE void store(double* p, Doubles v, std::int64_t n = kLanes) { store_pack(p, v, n); }
// Zeros, by vectors. GCC compiles an initializer to a string instruction, which takes longer to start than all of this.
template <class T, int N>
FUSEDSTEP_INLINE void clear(T (&array)[N]) {
  static_assert(N % kLanes == 0);
  [&]<int... K>(std::integer_sequence<int, K...>) FUSEDSTEP_LAMBDA {
    (store_pack(array + K * kLanes, Pack<T, kLanes>{}), ...);
  }(std::make_integer_sequence<int, N / kLanes>());
}
FUSEDSTEP_INLINE void stream(float* p, Floats v) { stream_pack(p, v); }
FUSEDSTEP_INLINE void stream(double* p, Doubles v) { stream_pack(p, v); }

}  // namespace fusedstep::FUSEDSTEP_SET
