// Loops over an array, 16 lanes at a time.
#pragma once

#include "kernels/pack/memory.h"

namespace fusedstep::FUSEDSTEP_SET {

// How many of l lanes are left behind all packs; so written, the compiler knows that they are fewer than a pack.
FUSEDSTEP_INLINE std::int64_t lanes_left(std::int64_t l) { return l & (kLanes - 1); }

// Calls f(offset, lanes) for every 16 of l elements, the last time with fewer lanes.
template <class F>
FUSEDSTEP_INLINE void each_lanes(std::int64_t l, F f) {
  std::int64_t i = 0;
  for (; i + kLanes <= l; i += kLanes) f(i, kLanes);
  if (i < l) f(i, lanes_left(l));
}

// The same with the half of a LaneSum that these lanes are added to: f(offset, lanes, half).
template <class F>
FUSEDSTEP_INLINE void each_half(std::int64_t l, F f) {
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= l; i += 2 * kLanes) {
    f(i, kLanes, 0);
    f(i + kLanes, kLanes, 1);
  }
  if (i < l) f(i, l - i < kLanes ? l - i : kLanes, 0);
  if (i + kLanes < l) f(i + kLanes, lanes_left(l), 1);
}

// out[i] = f(i, lanes) for l elements, in order. Streamed, the first few are stored as usual, up to a cache line.
template <class T, class F>
FUSEDSTEP_INLINE void write_lanes(T* out, std::int64_t l, bool streamed, F f) {
  std::int64_t i = 0;
  if (streamed) {
    const std::int64_t misaligned = std::int64_t(reinterpret_cast<std::uintptr_t>(out) % 64 / sizeof(T)) % kLanes;
    if (misaligned > 0) {
      i = kLanes - misaligned < l ? kLanes - misaligned : l;
      store(out, f(0, i), i);
    }
    for (; i + kLanes <= l; i += kLanes) stream(out + i, f(i, kLanes));
  } else {
    for (; i + kLanes <= l; i += kLanes) store(out + i, f(i, kLanes), kLanes);
  }
  if (i < l) store(out + i, f(i, lanes_left(l - i)), lanes_left(l - i));
}

}  // namespace fusedstep::FUSEDSTEP_SET
