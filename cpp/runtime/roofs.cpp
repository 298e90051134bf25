#include "runtime/roofs.h"

#include "runtime/chunks.h"

namespace fusedstep::runtime {

void roof_step(const KernelTable& table, const RoofArgs& args, int arrays, std::int64_t n) {
  each_run(n, (4 + 8 * arrays) * n,
           [&](std::int64_t begin, std::int64_t end) { table.roofs->step[arrays - 1](args, begin, end); });
}

void roof_map(const KernelTable& table, const float* a, const float* b, float* out, std::int64_t n) {
  const bool streamed = streams(n);
  each_run(n, (b ? 12 : 8) * n,
           [&](std::int64_t begin, std::int64_t end) { table.roofs->map(a, b, out, streamed, begin, end); });
}

}  // namespace fusedstep::runtime
