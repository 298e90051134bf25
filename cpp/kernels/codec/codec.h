// Codecs decode a block of a stored array to floats, and encode it again.
#pragma once

#include <bit>

#include "kernels/abi/dtype.h"
#include "kernels/codec/narrow.h"
#include "maths/random.h"

namespace fusedstep::FUSEDSTEP_SET {

// How many of the bits that rounding cuts off the random words decide.
constexpr int bits_cut(Dtype stored) { return stored == Dtype::float16 ? 32 : stored == Dtype::bfloat16 ? 16 : 19; }

// The random words of consecutive elements: words[i] ^ key.
struct RandomWords {
  const std::uint32_t* words;
  std::uint32_t key;

  // Those of 16 elements from the i-th on, i a multiple of 16.
  FUSEDSTEP_INLINE Bits load(std::int64_t i) const { return load_pack<Bits>(words + i) ^ key; }
};

// 8 bits: kScaled elements share a scale, a power of 2; the quotients are coded by companding, as G.711 (mu-law) does.
// A quotient plus an offset is rounded to a float with 4 bits of mantissa; the codes number these floats from the
// offset on. So codes near 0 are at equal distances, and larger ones at equal ratios.
template <bool Signed>
struct Companding {
  static constexpr int octaves = Signed ? 8 : 16;
  static constexpr int shift = 19;  // leaves a float's exponent and 4 bits of its mantissa
  // The bits of the first and the last of these floats, shifted; a code is the lowest bits.
  static constexpr std::uint32_t base = std::uint32_t(128 - octaves) << 4, last = 0x7ff;
  static constexpr float offset = std::bit_cast<float>(base << shift);
  // A little less than the value of the last code, so that rounding up does not pass it.
  static constexpr float largest = (std::bit_cast<float>(last << shift) - offset) * (1.0f - 0x1p-20f);
};

// The least and the largest scale whose arithmetic meets neither subnormal numbers nor infinity.
inline constexpr float kLeastScale = 0x1p-104f, kLargestScale = 0x1p126f;
inline bool is_plain(float scale) {
  return scale >= kLeastScale && scale <= kLargestScale && (std::bit_cast<std::uint32_t>(scale) & 0x7fffff) == 0;
}
// What multiplying by a plain scale adds to the bits of a float.
inline std::uint32_t exponent_of(float scale) { return std::bit_cast<std::uint32_t>(scale) - 0x3f800000u; }

// The scale of a block, from the largest bits of its numbers, signs left out where numbers are signed. It is 0 for
// zeros. It is NaN, so that the whole block decodes to NaN, where there is an infinity, a NaN, or a sign in a block of
// squares.
template <bool Signed>
inline float scale_from(std::uint32_t largest) {
  if (largest == 0) return 0.0f;
  const float least = std::bit_cast<float>(largest) * (1.0f / Companding<Signed>::largest);
  if (!(least < kLargestScale && least >= 0.0f)) return __builtin_nanf("");
  const float power = std::bit_cast<float>((std::bit_cast<std::uint32_t>(least) + 0x7fffff) & 0x7f800000);
  return power < kLeastScale ? kLeastScale : power;
}

// The codes of 16 numbers; signed codes are sign-extended.
template <bool Signed>
FUSEDSTEP_INLINE Bits load_codes(const std::uint8_t* codes, std::int64_t n) {
  return load_bits<std::conditional_t<Signed, std::int8_t, std::uint8_t>>(codes, n);
}
template <bool Signed>
FUSEDSTEP_INLINE Bits places_of(Bits code) {
  using C = Companding<Signed>;
  return Signed ? (code << C::shift) & (0x7fu << C::shift) : code << C::shift;
}
template <bool Signed>
FUSEDSTEP_INLINE Floats with_sign(Floats value, Bits code) {
  return Signed ? as<Floats>(as<Bits>(value) | (code & 0x80000000u)) : value;
}

template <bool Signed>
FUSEDSTEP_INLINE void decode_codes(const std::uint8_t* codes, float scale, float* to, std::int64_t n) {
  using C = Companding<Signed>;
  each_lanes(n, [=](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA {
    const Bits code = load_codes<Signed>(codes + i, lanes);
    const Floats value = (as<Floats>(places_of<Signed>(code) | (C::base << C::shift)) - C::offset) * scale;
    store(to + i, with_sign<Signed>(value, code), lanes);
  });
}
// The same for 16 numbers of a plain scale.
template <bool Signed>
FUSEDSTEP_INLINE Floats decode_plain(const std::uint8_t* codes, float scale) {
  using C = Companding<Signed>;
  const Bits code = load_codes<Signed>(codes, kLanes);
  const Bits place = places_of<Signed>(code) + ((C::base << C::shift) + exponent_of(scale));
  return with_sign<Signed>(as<Floats>(place) - C::offset * scale, code);
}

template <bool Signed>
FUSEDSTEP_INLINE Bits largest_of(Bits largest, Floats v) {
  return larger_bits(largest, Signed ? as<Bits>(v) & 0x7fffffffu : as<Bits>(v));
}
template <bool Signed>
inline float scale_of(const float* values, std::int64_t n) {
  Bits largest = {};
  each_lanes(n, [&](std::int64_t i, std::int64_t lanes)
                    FUSEDSTEP_LAMBDA { largest = largest_of<Signed>(largest, load(values + i, lanes)); });
  return scale_from<Signed>(largest_lane(largest));
}

// Codes of numbers without their signs, with the bits of the base above them.
template <bool Signed>
FUSEDSTEP_INLINE Bits raised_codes(Floats v, float scale, Bits random) {
  using C = Companding<Signed>;
  const Bits bits = as<Bits>(v);
  const Floats place = as<Floats>(Signed ? bits & 0x7fffffffu : bits) + C::offset * scale;
  return (as<Bits>(place) + random) >> C::shift;
}
// Codes without the bits above them. Squares never get the code 0: the update divides by their root.
template <bool Signed, class V>
FUSEDSTEP_INLINE V bare_codes(V raised) {
  if constexpr (Signed) {
    return raised & 0x7f;
  } else {
    const V used = larger(raised, spread<V>(Lane<V>(Companding<Signed>::base + 1)));
    return kVectorBytes == 64 ? used : used & 0xff;
  }
}
template <bool Signed>
FUSEDSTEP_INLINE Bytes encode_plain(Floats v, float scale, Bits random) {
  const Bits codes = as<Bits>(bare_codes<Signed>(as<Ints>(raised_codes<Signed>(v, scale, random))));
  return low_bytes(Signed ? codes | ((as<Bits>(v) >> 24) & 0x80) : codes);
}
// The same of 32 numbers.
template <bool Signed>
FUSEDSTEP_INLINE ManyBytes encode_many(const float* from, float scale, Bits near, Bits far) {
  const Floats v = load(from), w = load(from + kLanes);
  const auto bare = [](WordsVector words) FUSEDSTEP_LAMBDA { return bare_codes<Signed>(words); };
  ManyBytes codes = many_bytes(raised_codes<Signed>(v, scale, near), raised_codes<Signed>(w, scale, far), bare);
  if constexpr (Signed) codes = codes | sign_bytes(as<Bits>(v), as<Bits>(w));
  return in_order(codes);
}
// Words that, added to the bits of a number, also divide it by a plain scale.
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
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    store_pack(codes + i, encode_many<Signed>(from + i, scale, words.load(i), words.load(i + kLanes)));
  }
  for (; i < n; i += kLanes) {
    const std::int64_t lanes = n - i < kLanes ? n - i : kLanes;
    store_pack(codes + i, encode_plain<Signed>(load(from + i, lanes), scale, words.load(i)), lanes);
  }
}

// 16 bits, rounded up with a probability that is the share of the unit that is cut off.
FUSEDSTEP_INLINE Words rounded_at_random(BFloat16, Bits bits, Bits random) {
  const Floats v = as<Floats>(bits);
  return high_words(select(v == v, bits + random, narrow_nan(bits)));
}

FUSEDSTEP_INLINE Words rounded_at_random(Float16, Bits bits, Bits random) {
  // Without the sign, so that signed comparisons order the magnitudes.
  const Ints magnitude = as<Ints>(bits & 0x7fffffffu), exponent = magnitude >> 23;
  // Subnormal numbers all have the same unit: how many bits are cut off depends on the exponent.
  const Ints cut = 126 - smaller(exponent, spread<Ints>(112));
  const Ints shift = smaller(cut, spread<Ints>(31)), beyond = smaller(cut - shift, spread<Ints>(24));
  const Bits hidden = where_not(exponent == 0, spread<Bits>(0x800000));
  const Bits mantissa = shifted_right(as<Bits>(magnitude & 0x7fffff) | hidden, beyond);
  const Bits small = shifted_right(mantissa + shifted_right(random, 32 - shift), shift);
  const Bits normal = (as<Bits>(magnitude) - (112u << 23) + (random >> 19)) >> 13;
  const Bits rounded = select(as<Ints>(normal) < 0x7c00, normal, spread<Bits>(0x7c00));
  const Bits finite = select(magnitude < (113 << 23), small, rounded);
  const Bits special = select(magnitude > 0x7f800000, spread<Bits>(0x7e00), spread<Bits>(0x7c00));
  const Bits value = select(magnitude >= (143 << 23), special, finite);
  return low_words(value | ((bits >> 16) & 0x8000));
}

template <class To>
FUSEDSTEP_INLINE void encode_at_random(const float* from, To* to, std::int64_t n, RandomWords random) {
  each_lanes(n, [=](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA {
    store_words(to + i, rounded_at_random(To{}, as<Bits>(load(from + i, lanes)), random.load(i)), lanes);
  });
}
// Not inlined: rarely used, and long.
__attribute__((noinline)) inline void encode_at_random(const float* from, Float16* to, std::int64_t n,
                                                       RandomWords random) {
  encode_at_random<Float16>(from, to, n, random);
}

// Decodes elements of one array; of 8 bits, of one scale. An array of floats is left alone.
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

// Encodes them, rounded at random.
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

// A narrow parameter that is not its rounded master has been changed by the user: its value goes into the master.
template <class Narrow>
FUSEDSTEP_INLINE void follow_words(float* master, const Narrow* copy, std::int64_t n) {
  each_lanes(n, [=](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA {
    const Floats mine = load(master + i, lanes);
    const Words theirs = load_words(copy + i, lanes);
    const Bits differ = bits_from(theirs ^ encode(Narrow{}, mine));
    store(master + i, select(differ == 0, mine, decode(Narrow{}, theirs)), lanes);
  });
}
__attribute__((noinline)) inline void follow_copy(float* master, const void* copy, Dtype copy_dtype, std::int64_t at,
                                                  std::int64_t n) {
  if (copy_dtype == Dtype::bfloat16) follow_words(master, static_cast<const BFloat16*>(copy) + at, n);
  if (copy_dtype == Dtype::float16) follow_words(master, static_cast<const Float16*>(copy) + at, n);
}

}  // namespace fusedstep::FUSEDSTEP_SET
