// What numbers are stored as, and how many of them kernels look at together.
#pragma once

#include <cstdint>

namespace fusedstep {

// The first kMathsDtypes are what arithmetic is done in; the first kDtypes are what arrays of users hold; the last two
// are codes of states.
enum class Dtype { float32, float64, float16, bfloat16, signed8, unsigned8 };
inline constexpr int kDtypes = 4;
inline constexpr int kMathsDtypes = 2;
constexpr Dtype maths_dtype(Dtype stored) { return stored == Dtype::float64 ? Dtype::float64 : Dtype::float32; }
constexpr bool is_code(Dtype dtype) { return dtype >= Dtype::signed8; }
constexpr std::int64_t item_bytes(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : is_code(dtype) ? 1 : 2;
}

// Blocks sit in the first-level cache. Sums are taken of chunks, and within them of strips. None of these depends on
// the number of threads.
inline constexpr std::int64_t kBlock = 1024;
inline constexpr std::int64_t kChunk = 4 * kBlock;
inline constexpr std::int64_t kStrip = 256;
// Lanes that a sum is taken in.
inline constexpr int kSumLanes = 32;

// Elements of 8 bits that share a scale. kBlock is a multiple of it.
inline constexpr std::int64_t kScaled = 256;
constexpr std::int64_t scales_of(std::int64_t elements) { return (elements + kScaled - 1) / kScaled; }

}  // namespace fusedstep
