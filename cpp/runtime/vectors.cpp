#include "runtime/vectors.h"

#include <algorithm>
#include <vector>

#include "runtime/threads.h"

namespace fusedstep::runtime {
namespace {

template <class Body>
void each_chunk(std::int64_t n, std::int64_t bytes, const Body& body) {
  const std::int64_t chunks = (n + kChunk - 1) / kChunk;
  parallel_for(chunks, threads_for(bytes), bytes, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t k = first; k < last; ++k) body(k, k * kChunk, std::min((k + 1) * kChunk, n));
  });
}

}  // namespace

double dot(const KernelTable& table, Dtype dtype, const void* x, const void* y, std::int64_t n) {
  std::vector<double> sums(std::size_t((n + kChunk - 1) / kChunk));
  each_chunk(n, 2 * n * item_bytes(dtype), [&](std::int64_t k, std::int64_t begin, std::int64_t end) {
    sums[std::size_t(k)] = table.arrays->dot[int(dtype)](x, y, begin, end);
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

void axpy(const KernelTable& table, Dtype dtype, double a, const void* x, void* y, std::int64_t n) {
  each_chunk(n, 3 * n * item_bytes(dtype), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    table.arrays->axpy[int(dtype)](a, x, y, begin, end);
  });
}

}  // namespace fusedstep::runtime
