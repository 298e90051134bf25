// What a fused loop works on.
#pragma once

#include "kernels/codec/codec.h"

namespace fusedstep::FUSEDSTEP_SET {

// Elements ahead whose lines are fetched.
inline constexpr std::int64_t kCodedAhead = 1024;

// A state's strip, and the strip before.
struct FusedState {
  void* stored;
  float* now;  // where it is decoded
  float scale;
  void* stored_before;  // null: there is none
  const float* before;
  float scale_before;
  RandomWords words;      // of the strip before
  std::uint32_t largest;  // of the bits of what was computed
};

}  // namespace fusedstep::FUSEDSTEP_SET
