// The random words of a tensor's step.
#pragma once

#include <algorithm>

#include "kernels/codec/codec.h"

namespace fusedstep::FUSEDSTEP_SET {

static_assert(kStreams == kMaxStates + 1 && kPattern == kStrip);

// A thread keeps it from one part of a tensor to the next: the patterns are made once.
class Rounding {
 public:
  void prepare(const StepArgs& a) {
    if (a.key != key_) std::fill(shifts_, shifts_ + kStreams, -1);
    key_ = a.key;
    offset_ = a.offset;
    for (int k = 0; k < a.states; ++k) {
      if (a.state_dtype[k] != Dtype::float32) prepare(k, a.state_dtype[k]);
    }
    if (a.random_param) prepare(kParamStream, a.param_dtype);
  }

  // The words of n elements from `at` on, no more than a strip. Each is added to a number before its last bits are cut
  // off.
  RandomWords words(int stream, std::int64_t at, std::int64_t n) {
    const std::int64_t element = offset_ + at, begin = element % kPattern, row = element / kPattern;
    const std::uint32_t* pattern = patterns_[stream];
    const auto place = [&](std::int64_t r) { return place_word(keys_[stream], r) >> shifts_[stream]; };
    if (begin == 0) return {pattern, place(row)};
    // A row of a row-sparse gradient may begin anywhere in a pattern.
    const std::uint32_t here = place(row), next = place(row + 1);
    for (std::int64_t i = 0; i < n; ++i) {
      joined_[stream][i] = pattern[(begin + i) % kPattern] ^ (begin + i < kPattern ? here : next);
    }
    return {joined_[stream], 0};
  }

 private:
  void prepare(int stream, Dtype stored) {
    const int shift = 32 - bits_cut(stored);
    if (shifts_[stream] == shift) return;
    shifts_[stream] = shift;
    const std::uint64_t key = keys_[stream] = stream_key(key_, stream);
    std::uint32_t* pattern = patterns_[stream];
#pragma omp simd
    for (std::int64_t i = 0; i < kPattern; ++i) pattern[i] = pattern_word(key, std::uint32_t(i)) >> shift;
  }

  std::uint64_t key_ = 0, keys_[kStreams];
  std::int64_t offset_ = 0;
  int shifts_[kStreams] = {-1, -1, -1, -1, -1};  // -1: the pattern is not there
  alignas(64) std::uint32_t patterns_[kStreams][kPattern], joined_[kStreams][kPattern];
};

}  // namespace fusedstep::FUSEDSTEP_SET
