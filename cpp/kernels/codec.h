#pragma once

#include <cstdint>

namespace fusedstep::FUSEDSTEP_SET {

// A codec brings a block of a stored array to the dtype T of the arithmetic and back. `load` gives a pointer to n
// elements of T: the array itself where that is what it holds, else `scratch`, decoded; `store` writes them back.
template <class Stored, class T>
struct Codec;

template <class T>
struct Codec<T, T> {
  static T* load(void* array, std::int64_t at, std::int64_t, T*) { return static_cast<T*>(array) + at; }
  static const T* load(const void* array, std::int64_t at, std::int64_t, T*) {
    return static_cast<const T*>(array) + at;
  }
  static void store(void*, std::int64_t, std::int64_t, const T*) {}
};

}  // namespace fusedstep::FUSEDSTEP_SET
