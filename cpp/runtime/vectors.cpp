#include "runtime/vectors.h"

#include <vector>

#include "runtime/chunks.h"

namespace fusedstep::runtime {

double dot(const KernelTable& table, Dtype dtype, const void* x, const void* y, std::int64_t n) {
  std::vector<double> sums(std::size_t(chunks_of(n)));
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
