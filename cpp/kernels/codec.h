// Codecs bring a block of a stored array to float and back.
#pragma once

#include <bit>

#include "kernels/narrow.h"
#include "kernels/random.h"
#include "kernels/table.h"

namespace fusedstep::FUSEDSTEP_SET {

// Of the bits that rounding to a dtype cuts off, so many are rounded at random.
constexpr int bits_cut(Dtype stored) { return stored == Dtype::float16 ? 32 : stored == Dtype::bfloat16 ? 16 : 19; }

// Of consecutive elements: words[i] ^ key.
struct RandomWords {
  const std::uint32_t* words;
  std::uint32_t key;

  // Of 16 elements from the i-th on, a multiple of 16.
  FUSEDSTEP_INLINE Bits load(std::int64_t i) const {
    Bits v;
    __builtin_memcpy(&v, words + i, sizeof v);
    return v ^ key;
  }
};

// 8 bits: a power of 2 beside every kScaled elements, and what is left as the companding of G.711 (mu-law) codes it. A
// number plus an offset lies between two floats of 4 bits of mantissa; these, counted from the offset on, are the
// codes: dense near 0 at even distances, farther out at even ratios.
template <bool Signed>
struct Companding {
  static constexpr int octaves = Signed ? 8 : 16;
  static constexpr int shift = 19;  // of a float's bits: its exponent and 4 bits are left
  // The codes are the last bits of these.
  static constexpr std::uint32_t base = std::uint32_t(128 - octaves) << 4, last = 0x7ff;
  static constexpr float offset = std::bit_cast<float>(base << shift);
  // A little less than the value of the last code: what is rounded up from there must not pass it.
  static constexpr float largest = (std::bit_cast<float>(last << shift) - offset) * (1.0f - 0x1p-20f);
};

// The arithmetic on codes leaves out scales beyond these: it would meet subnormal numbers, or infinity.
inline constexpr float kLeastScale = 0x1p-104f, kLargestScale = 0x1p126f;
inline bool is_plain(float scale) {
  return scale >= kLeastScale && scale <= kLargestScale && (std::bit_cast<std::uint32_t>(scale) & 0x7fffff) == 0;
}
// What a plain scale adds to the bits of a float that it multiplies.
inline std::uint32_t exponent_of(float scale) { return std::bit_cast<std::uint32_t>(scale) - 0x3f800000u; }

// From the largest of the numbers' bits, without their signs where there may be any. What is left of an infinity or a
// NaN, or of a sign where there should be none, is a NaN, and of its whole block: it must not vanish. Of nothing but
// zeros it is 0.
template <bool Signed>
inline float scale_from(std::uint32_t largest) {
  if (largest == 0) return 0.0f;
  const float least = std::bit_cast<float>(largest) * (1.0f / Companding<Signed>::largest);
  if (!(least < kLargestScale && least >= 0.0f)) return __builtin_nanf("");
  const float power = std::bit_cast<float>((std::bit_cast<std::uint32_t>(least) + 0x7fffff) & 0x7f800000);
  return power < kLeastScale ? kLeastScale : power;
}

typedef std::uint8_t Bytes __attribute__((vector_size(16)));

// 16 bytes as numbers of 32 bits, and the lowest bytes of these. GCC 12 takes the conversions apart.
FUSEDSTEP_INLINE Bits load_bytes(const std::uint8_t* p, std::int64_t n) {
  Bytes bytes = {};
  if (n >= kLanes) {
    __builtin_memcpy(&bytes, p, sizeof bytes);
  } else {
    copy_items(reinterpret_cast<std::uint8_t*>(&bytes), p, n);
  }
#if defined(__AVX512F__)
  return (Bits)_mm512_maskz_cvtepu8_epi32(0xffff, (__m128i)bytes);
#elif defined(__AVX2__)
  const __m256i half[2] = {_mm256_cvtepu8_epi32((__m128i)bytes),
                           _mm256_cvtepu8_epi32(_mm_unpackhi_epi64((__m128i)bytes, (__m128i)bytes))};
  Bits v;
  __builtin_memcpy(&v, half, sizeof v);
  return v;
#else
  return __builtin_convertvector(bytes, Bits);
#endif
}
FUSEDSTEP_INLINE void store_bytes(std::uint8_t* p, Bits v, std::int64_t n) {
#if defined(__AVX512F__)
  const Bytes bytes = (Bytes)_mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v);
#elif defined(__AVX2__)
  __m256i half[2];
  __builtin_memcpy(half, &v, sizeof v);
  const __m256i low = _mm256_set1_epi32(0xff);
  const __m256i words = _mm256_packus_epi32(_mm256_and_si256(half[0], low), _mm256_and_si256(half[1], low));
  const __m256i packed = _mm256_packus_epi16(_mm256_permute4x64_epi64(words, 0xd8), words);
  const Bytes bytes = (Bytes)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0xd8));
#else
  const Bytes bytes = __builtin_convertvector(v, Bytes);
#endif
  if (n >= kLanes) {
    __builtin_memcpy(p, &bytes, sizeof bytes);
  } else {
    copy_items(p, reinterpret_cast<const std::uint8_t*>(&bytes), n);
  }
}

template <bool Signed>
FUSEDSTEP_INLINE Bits places_of(Bits code) {
  using C = Companding<Signed>;
  return Signed ? code << C::shift & (0x7fu << C::shift) : code << C::shift;
}
template <bool Signed>
FUSEDSTEP_INLINE Floats with_sign(Floats value, Bits code) {
  return Signed ? (Floats)((Bits)value | (code << 24 & 0x80000000u)) : value;
}

template <bool Signed>
FUSEDSTEP_INLINE void decode_codes(const std::uint8_t* codes, float scale, float* to, std::int64_t n) {
  using C = Companding<Signed>;
  each_lanes(n, [=](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA {
    const Bits code = load_bytes(codes + i, lanes);
    const Floats value = ((Floats)(places_of<Signed>(code) | (C::base << C::shift)) - C::offset) * scale;
    store(to + i, with_sign<Signed>(value, code), lanes);
  });
}
// Of a plain scale, and 16 of them.
template <bool Signed>
FUSEDSTEP_INLINE Floats decode_plain(const std::uint8_t* codes, float scale) {
  using C = Companding<Signed>;
  const Bits code = load_bytes(codes, kLanes);
  const Bits place = places_of<Signed>(code) + ((C::base << C::shift) + exponent_of(scale));
  return with_sign<Signed>((Floats)place - C::offset * scale, code);
}

template <bool Signed>
FUSEDSTEP_INLINE Bits largest_of(Bits largest, Floats v) {
  const Bits bits = Signed ? (Bits)v & 0x7fffffff : (Bits)v;
#if defined(__AVX512F__)
  return (Bits)_mm512_maskz_max_epu32(0xffff, (__m512i)largest, (__m512i)bits);
#else
  return bits > largest ? bits : largest;
#endif
}
FUSEDSTEP_INLINE std::uint32_t largest_lane(Bits lanes) {
  std::uint32_t largest = 0;
  for (int k = 0; k < kLanes; ++k) largest = lanes[k] > largest ? lanes[k] : largest;
  return largest;
}
template <bool Signed>
inline float scale_of(const float* values, std::int64_t n) {
  Bits largest = {};
  each_lanes(n, [&](std::int64_t i, std::int64_t lanes)
                    FUSEDSTEP_LAMBDA { largest = largest_of<Signed>(largest, load(values + i, lanes)); });
  return scale_from<Signed>(largest_lane(largest));
}

// 16 numbers as codes, each with the bits of a float above them. The code 0 is not used where there is no sign: a root
// of what is so small would divide.
template <bool Signed>
FUSEDSTEP_INLINE Bits encode_plain(Floats v, float scale, Bits random) {
  using C = Companding<Signed>;
  const Bits bits = (Bits)v;
  const Floats place = (Floats)(Signed ? bits & 0x7fffffff : bits) + C::offset * scale;
  const Bits code = ((Bits)place + random) >> C::shift;
  if constexpr (Signed) {
    return (code & 0x7f) | (bits >> 24 & 0xffffff80u);
  } else {
    const Ints least = Ints{} + std::int32_t(C::base + 1);
    return (Bits)((Ints)code > least ? (Ints)code : least);
  }
}
// Takes the scale off the bits of a number along with what rounds it.
inline RandomWords unscaled(RandomWords random, float scale) {
  return {random.words, random.key ^ (0u - exponent_of(scale))};
}

template <bool Signed>
FUSEDSTEP_INLINE void encode_codes(const float* from, std::uint8_t* codes, float scale, std::int64_t n,
                                   RandomWords random) {
  if (!is_plain(scale)) {
    __builtin_memset(codes, 0, std::size_t(n));
    return;
  }
  const RandomWords words = unscaled(random, scale);
  each_lanes(n, [=](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA {
    store_bytes(codes + i, encode_plain<Signed>(load(from + i, lanes), scale, words.load(i)), lanes);
  });
}

// 16 bits, rounded up with the probability of what is cut off.
FUSEDSTEP_INLINE Words rounded_at_random(BFloat16, Bits bits, Bits random) {
  const Bits nan = (bits & 0x80000000u) | 0x7fc00000u;
  return __builtin_convertvector(choose((Floats)bits == (Floats)bits, bits + random, nan) >> 16, Words);
}

FUSEDSTEP_INLINE Words rounded_at_random(Float16, Bits bits, Bits random) {
  const Bits magnitude = bits & 0x7fffffff, exponent = magnitude >> 23;
  // Below the least normal number the units are even: so many bits are cut off.
  const Bits cut = 126 - (exponent < 113 ? exponent : Bits{} + 112);
  const Bits shift = cut < 31 ? cut : Bits{} + 31, beyond = cut - shift < 24 ? cut - shift : Bits{} + 24;
  const Bits hidden = exponent == 0 ? Bits{} : Bits{} + 0x800000;
  const Bits mantissa = ((magnitude & 0x7fffff) | hidden) >> beyond;
  const Bits small = (mantissa + (random >> (32 - shift))) >> shift;
  const Bits normal = (magnitude - (112u << 23) + (random >> 19)) >> 13;
  const Bits rounded = normal < 0x7c00 ? normal : Bits{} + 0x7c00;
  const Bits finite = magnitude < (113u << 23) ? small : rounded;
  const Bits special = magnitude > 0x7f800000 ? Bits{} + 0x7e00 : Bits{} + 0x7c00;
  const Bits value = magnitude >= (143u << 23) ? special : finite;
  return __builtin_convertvector(value | (bits >> 16 & 0x8000), Words);
}

template <class To>
FUSEDSTEP_INLINE void encode_at_random(const float* from, To* to, std::int64_t n, RandomWords random) {
  each_lanes(n, [=](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA {
    store_words(to + i, rounded_at_random(To{}, (Bits)load(from + i, lanes), random.load(i)), lanes);
  });
}
// Seldom asked for, and long.
__attribute__((noinline)) inline void encode_at_random(const float* from, Float16* to, std::int64_t n,
                                                       RandomWords random) {
  encode_at_random<Float16>(from, to, n, random);
}

// Values of one array, of 8 bits no more than share a scale. Nothing is done where it holds floats.
FUSEDSTEP_INLINE void decode(Dtype stored, const void* array, float scale, std::int64_t at, std::int64_t n, float* to) {
  const auto* codes = static_cast<const std::uint8_t*>(array) + at;
  if (stored == Dtype::bfloat16) {
    const auto* words = static_cast<const BFloat16*>(array) + at;
    each_lanes(
        n, [=](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA { store(to + i, load(words + i, lanes), lanes); });
  } else if (stored == Dtype::signed8) {
    decode_codes<true>(codes, scale, to, n);
  } else if (stored == Dtype::unsigned8) {
    decode_codes<false>(codes, scale, to, n);
  } else if (stored == Dtype::float16) {
    decode_block(static_cast<const Float16*>(array) + at, to, n);
  }
}

// Writes them back, rounded at random.
FUSEDSTEP_INLINE void encode(Dtype stored, void* array, float scale, std::int64_t at, std::int64_t n,
                             const float* values, RandomWords random) {
  auto* codes = static_cast<std::uint8_t*>(array) + at;
  if (stored == Dtype::bfloat16) {
    encode_at_random(values, static_cast<BFloat16*>(array) + at, n, random);
  } else if (stored == Dtype::signed8) {
    encode_codes<true>(values, codes, scale, n, random);
  } else if (stored == Dtype::unsigned8) {
    encode_codes<false>(values, codes, scale, n, random);
  } else if (stored == Dtype::float16) {
    encode_at_random(values, static_cast<Float16*>(array) + at, n, random);
  }
}

FUSEDSTEP_INLINE void encode_nearest(Dtype stored, void* array, std::int64_t at, std::int64_t n, const float* values) {
  if (stored == Dtype::bfloat16) {
    auto* words = static_cast<BFloat16*>(array) + at;
    each_lanes(n, [=](std::int64_t i, std::int64_t lanes)
                      FUSEDSTEP_LAMBDA { store(words + i, load(values + i, lanes), lanes); });
  } else if (stored == Dtype::float16) {
    encode_block(values, static_cast<Float16*>(array) + at, n, false);
  }
}

// Where a narrow parameter is no longer the rounded master, somebody has changed it since: it holds.
template <class Narrow>
FUSEDSTEP_INLINE void follow_words(float* master, const Narrow* copy, std::int64_t n) {
  each_lanes(n, [=](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA {
    const Floats mine = load(master + i, lanes);
    const Words theirs = load_words(copy + i, lanes);
    const Bits differ = __builtin_convertvector(theirs ^ encode(Narrow{}, mine), Bits);
    store(master + i, (Floats)choose((Ints)(differ == 0), (Bits)mine, (Bits)decode(Narrow{}, theirs)), lanes);
  });
}
__attribute__((noinline)) inline void follow_copy(float* master, const void* copy, Dtype copy_dtype, std::int64_t at,
                                                  std::int64_t n) {
  if (copy_dtype == Dtype::bfloat16) follow_words(master, static_cast<const BFloat16*>(copy) + at, n);
  if (copy_dtype == Dtype::float16) follow_words(master, static_cast<const Float16*>(copy) + at, n);
}

}  // namespace fusedstep::FUSEDSTEP_SET
