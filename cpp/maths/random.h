// Random words for stochastic rounding. Each is a hash of the seed, the step and the place of the number, so that it
// does not depend on the instruction set or the number of threads, and needs no state.
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

// A stream of words for each state that a rule keeps, by its number, and one for the parameter.
inline constexpr int kParamStream = 4;
inline constexpr int kStreams = 5;
constexpr std::uint64_t stream_key(std::uint64_t key, int stream) { return mix64(key + std::uint64_t(stream)); }

// The word of element e is pattern(e mod kPattern) ^ place(e / kPattern). Any two of these words are independent, which
// is all that the variance of a sum of rounding errors depends on.
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
