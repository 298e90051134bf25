// A state as a fused loop takes it.
#pragma once

#include "kernels/codec/codec.h"

namespace fusedstep::FUSEDSTEP_SET {

// How many elements ahead coded arrays are prefetched.
inline constexpr std::int64_t kCodedAhead = 1024;

// A strip of a state, and the strip before it.
struct FusedState {
  void* stored;
  float* now;  // where the strip is decoded to
  float scale;
  void* stored_before;  // null: there is none
  const float* before;
  float scale_before;
  RandomWords words;      // of the strip before
  std::uint32_t largest;  // the largest bits of the strip's new values
};

}  // namespace fusedstep::FUSEDSTEP_SET
