#include "runtime/dropout.h"

#include <cmath>

#include "runtime/chunks.h"

namespace fusedstep::runtime {

double dropped_words(double p) { return std::nearbyint(p * 0x1p32); }

void dropout(const KernelTable& table, Dtype dtype, DropoutArgs args, double p, std::int64_t n) {
  const double words = dropped_words(p);
  args.threshold = std::uint32_t(words);
  args.scale = 1.0 / (1.0 - words * 0x1p-32);
  args.stream = args.y != args.x && args.y != args.residual && streams(n);
  each_run(n, 2 * 8 * n, [&](std::int64_t begin, std::int64_t end) {
    table.dropout->dropout[int(dtype)][args.residual != nullptr](args, begin, end);
  });
}

}  // namespace fusedstep::runtime
