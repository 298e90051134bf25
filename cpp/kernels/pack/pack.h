// Packs: N lanes of one type, whatever the processor. A pack is one vector of the instruction set where it fits, else a
// pair of packs of half as many lanes. So every operation is one of the processor's own. (GCC keeps vectors that are
// wider than the processor's in memory.) All functions here are always inlined: no vector is passed in a call.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define FUSEDSTEP_INLINE inline __attribute__((always_inline))
#define FUSEDSTEP_LAMBDA __attribute__((always_inline))

namespace fusedstep::FUSEDSTEP_SET {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__SSE2__)
inline constexpr int kVectorBytes = 16, kRegisters = 16;
#else
inline constexpr int kVectorBytes = 16, kRegisters = 32;
#endif

template <class V>
struct Pair {
  V low, high;
};
template <class V>
inline constexpr bool is_pair = false;
template <class V>
inline constexpr bool is_pair<Pair<V>> = true;

template <class E, int N, bool Fits = (N * int(sizeof(E)) <= kVectorBytes)>
struct PackOf {
  typedef E type __attribute__((vector_size(N * sizeof(E))));
};
template <class E, int N>
struct PackOf<E, N, false> {
  using type = Pair<typename PackOf<E, N / 2>::type>;
};
// N lanes of type E.
template <class E, int N>
using Pack = typename PackOf<E, N>::type;

template <class V>
struct LaneOf {
  using type = std::remove_cvref_t<decltype(V()[0])>;
};
template <class V>
struct LaneOf<Pair<V>> : LaneOf<V> {};
template <class V>
using Lane = typename LaneOf<V>::type;
template <class V>
inline constexpr int lanes_of = int(sizeof(V) / sizeof(Lane<V>));
// As many lanes of another type.
template <class E, class V>
using Like = Pack<E, lanes_of<V>>;

// Lanes that most loops take at a time.
inline constexpr int kLanes = 16;
using Floats = Pack<float, kLanes>;
using Ints = Pack<std::int32_t, kLanes>;
using Bits = Pack<std::uint32_t, kLanes>;
using Words = Pack<std::uint16_t, kLanes>;
using Bytes = Pack<std::uint8_t, kLanes>;
using Doubles = Pack<double, kLanes>;

#define FUSEDSTEP_OPERATOR(op)                                               \
  template <class V>                                                         \
  FUSEDSTEP_INLINE auto operator op(Pair<V> a, Pair<V> b) {                  \
    return Pair<decltype(a.low op b.low)>{a.low op b.low, a.high op b.high}; \
  }                                                                          \
  template <class V>                                                         \
  FUSEDSTEP_INLINE auto operator op(Pair<V> a, Lane<V> b) {                  \
    return Pair<decltype(a.low op b)>{a.low op b, a.high op b};              \
  }                                                                          \
  template <class V>                                                         \
  FUSEDSTEP_INLINE auto operator op(Lane<V> a, Pair<V> b) {                  \
    return Pair<decltype(a op b.low)>{a op b.low, a op b.high};              \
  }
FUSEDSTEP_OPERATOR(+)
FUSEDSTEP_OPERATOR(-)
FUSEDSTEP_OPERATOR(*)
FUSEDSTEP_OPERATOR(/)
FUSEDSTEP_OPERATOR(&)
FUSEDSTEP_OPERATOR(|)
FUSEDSTEP_OPERATOR(^)
FUSEDSTEP_OPERATOR(==)
FUSEDSTEP_OPERATOR(<)
FUSEDSTEP_OPERATOR(<=)
FUSEDSTEP_OPERATOR(>)
FUSEDSTEP_OPERATOR(>=)
#undef FUSEDSTEP_OPERATOR

template <class V>
FUSEDSTEP_INLINE Pair<V> operator<<(Pair<V> v, int bits) {
  return {v.low << bits, v.high << bits};
}
template <class V>
FUSEDSTEP_INLINE Pair<V> operator>>(Pair<V> v, int bits) {
  return {v.low >> bits, v.high >> bits};
}
template <class V>
FUSEDSTEP_INLINE Pair<V> operator-(Pair<V> v) {
  return {-v.low, -v.high};
}
template <class V>
FUSEDSTEP_INLINE Pair<V> operator~(Pair<V> v) {
  return {~v.low, ~v.high};
}

// Each lane by its own number of bits.
template <class V, class I>
FUSEDSTEP_INLINE V shifted_right(V v, I bits) {
  if constexpr (is_pair<V>) {
    return {shifted_right(v.low, bits.low), shifted_right(v.high, bits.high)};
  } else {
    return v >> (V)bits;
  }
}

// The same bits as lanes of another type.
template <class To, class From>
FUSEDSTEP_INLINE To as(From v) {
  if constexpr (is_pair<To>) {
    return {as<decltype(To::low)>(v.low), as<decltype(To::low)>(v.high)};
  } else {
    return (To)v;
  }
}

// Every lane the same. Floats by a subtraction: -0 + 0 would be 0.
template <class V>
FUSEDSTEP_INLINE V spread(Lane<V> x) {
  if constexpr (is_pair<V>) {
    const auto half = spread<decltype(V::low)>(x);
    return {half, half};
  } else if constexpr (std::is_floating_point_v<Lane<V>>) {
    return x - V{};
  } else {
    return V{} + x;
  }
}

// Lane by lane: `yes` where the comparison held, else `no`.
template <class M, class V>
FUSEDSTEP_INLINE V select(M held, V yes, V no) {
  if constexpr (is_pair<V>) {
    return {select(held.low, yes.low, no.low), select(held.high, yes.high, no.high)};
  } else {
    return held ? yes : no;
  }
}
// The same with 0 for one of the two: one operation on bits.
template <class M, class V>
FUSEDSTEP_INLINE V where(M held, V v) {
#if defined(__AVX512F__)
  return select(held, v, V{});
#else
  return as<V>(as<M>(v) & held);
#endif
}
template <class M, class V>
FUSEDSTEP_INLINE V where_not(M held, V v) {
#if defined(__AVX512F__)
  return select(held, V{}, v);
#else
  return as<V>(as<M>(v) & ~held);
#endif
}

// The halves of a pack.
template <int At, class V, int... I>
FUSEDSTEP_INLINE auto part_of(V v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (At + I)...);
}
template <class V>
FUSEDSTEP_INLINE auto lower(V v) {
  if constexpr (is_pair<V>) {
    return v.low;
  } else {
    return part_of<0>(v, std::make_integer_sequence<int, lanes_of<V> / 2>());
  }
}
template <class V>
FUSEDSTEP_INLINE auto upper(V v) {
  if constexpr (is_pair<V>) {
    return v.high;
  } else {
    return part_of<lanes_of<V> / 2>(v, std::make_integer_sequence<int, lanes_of<V> / 2>());
  }
}

template <class V, class S, int Bytes>
inline constexpr bool is_vector = std::is_same_v<Lane<V>, S> && sizeof(V) == Bytes;

// a > b ? a : b, and a < b ? a : b: where a is NaN, b.
template <class V>
  requires(!std::is_arithmetic_v<V>)
FUSEDSTEP_INLINE V larger(V a, V b) {
  if constexpr (is_pair<V>) {
    return {larger(a.low, b.low), larger(a.high, b.high)};
  } else {
    // GCC would compile it as a comparison and a blend.
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<V, Floats>) return (V)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
    if constexpr (is_vector<V, float, 32>) return (V)_mm256_max_ps((__m256)a, (__m256)b);
    if constexpr (is_vector<V, double, 32>) return (V)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
    if constexpr (is_vector<V, float, 16>) return (V)_mm_max_ps((__m128)a, (__m128)b);
    if constexpr (is_vector<V, double, 16>) return (V)_mm_max_pd((__m128d)a, (__m128d)b);
#endif
    return a > b ? a : b;
  }
}
template <class V>
  requires(!std::is_arithmetic_v<V>)
FUSEDSTEP_INLINE V smaller(V a, V b) {
  if constexpr (is_pair<V>) {
    return {smaller(a.low, b.low), smaller(a.high, b.high)};
  } else {
    // GCC would compile it as a comparison and a blend.
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<V, Floats>) return (V)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
    if constexpr (is_vector<V, float, 32>) return (V)_mm256_min_ps((__m256)a, (__m256)b);
    if constexpr (is_vector<V, double, 32>) return (V)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
    if constexpr (is_vector<V, float, 16>) return (V)_mm_min_ps((__m128)a, (__m128)b);
    if constexpr (is_vector<V, double, 16>) return (V)_mm_min_pd((__m128d)a, (__m128d)b);
#endif
    return a < b ? a : b;
  }
}
// Whether lanes of a or b are NaN; the vectors of a pair are joined by or.
template <class V>
FUSEDSTEP_INLINE auto unordered(V a, V b) {
  if constexpr (is_pair<V>) {
    return unordered(a.low, b.low) | unordered(a.high, b.high);
  } else {
    using M [[maybe_unused]] = decltype(a == b);
#if defined(__AVX2__) && !defined(__AVX512F__)
    return (M)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q);
#elif defined(__SSE2__) && !defined(__AVX512F__)
    return (M)_mm_cmpunord_ps((__m128)a, (__m128)b);
#else
    return ~((a == a) & (b == b));
#endif
  }
}

// The larger of unsigned numbers.
using BitsVector = Pack<std::uint32_t, kVectorBytes / 4>;
FUSEDSTEP_INLINE BitsVector larger_bits(BitsVector a, BitsVector b) {
#if defined(__AVX512F__)
  return (BitsVector)_mm512_maskz_max_epu32(0xffff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (BitsVector)_mm256_max_epu32((__m256i)a, (__m256i)b);
#else
  return a > b ? a : b;
#endif
}
template <class V>
FUSEDSTEP_INLINE Pair<V> larger_bits(Pair<V> a, Pair<V> b) {
  return {larger_bits(a.low, b.low), larger_bits(a.high, b.high)};
}

}  // namespace fusedstep::FUSEDSTEP_SET
