// Random words for rounding: a hash of where a number stands and when it is rounded, so that they are the same on every
// set and for every number of threads, and can be had again from seed and step alone.
#pragma once

#include <cstdint>

namespace fusedstep {

// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014: splitmix64.
constexpr std::uint64_t mix64(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr std::uint64_t rounding_key(std::uint64_t seed, std::int64_t step, std::int64_t tensor) {
  return mix64(mix64(mix64(seed) + std::uint64_t(step)) + std::uint64_t(tensor));
}

// Of the k-th state that a rule keeps, or of the parameter.
inline constexpr int kParamStream = 4;
inline constexpr int kStreams = 5;
constexpr std::uint64_t stream_key(std::uint64_t key, int stream) { return mix64(key + std::uint64_t(stream)); }

// The word of element e is pattern(e mod kPattern) ^ place(e / kPattern): as good as one hash for each where, as here,
// it is sums of pairs that count, for any two of them are independent.
inline constexpr std::int64_t kPattern = 256;

// Wellons' lowbias32 ("Prospecting for Hash Functions", 2018) with a key before each product.
constexpr std::uint32_t pattern_word(std::uint64_t stream, std::uint32_t index) {
  std::uint32_t x = index + std::uint32_t(stream);
  x = (x ^ (x >> 16)) * 0x7feb352du ^ std::uint32_t(stream >> 32);
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}
constexpr std::uint32_t place_word(std::uint64_t stream, std::int64_t place) {
  return std::uint32_t(mix64(stream ^ std::uint64_t(place)) >> 32);
}

}  // namespace fusedstep
