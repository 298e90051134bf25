// Elements one by one, shared out over the threads in whole chunks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/abi/table.h"
#include "runtime/threads.h"

namespace fusedstep::runtime {

constexpr std::int64_t chunks_of(std::int64_t n) { return (n + kChunk - 1) / kChunk; }

// Calls body(begin, end) for runs of whole chunks of n elements; the call moves so many bytes in all.
template <class Body>
void each_run(std::int64_t n, std::int64_t bytes, const Body& body) {
  parallel_for(chunks_of(n), threads_for(bytes), bytes,
               [&](std::int64_t first, std::int64_t last) { body(first * kChunk, std::min(last * kChunk, n)); });
}

// Calls body(k, begin, end) for the k-th chunk.
template <class Body>
void each_chunk(std::int64_t n, std::int64_t bytes, const Body& body) {
  parallel_for(chunks_of(n), threads_for(bytes), bytes, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t k = first; k < last; ++k) body(k, k * kChunk, std::min((k + 1) * kChunk, n));
  });
}

// Whether an output of so many elements is written past the cache: it would not stay there anyway, and is not read
// before it is written.
constexpr bool streams(std::int64_t elements) { return elements >= 2 * 1024 * 1024; }

}  // namespace fusedstep::runtime
