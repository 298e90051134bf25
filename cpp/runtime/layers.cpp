#include "runtime/layers.h"

#include <algorithm>

#include "runtime/threads.h"

namespace fusedstep::runtime {
namespace {

// An output beyond this is read again from memory anyway; streamed, it is not read before it is written.
constexpr std::int64_t kStreamElements = 1024 * 1024;
bool streams(std::int64_t elements) { return elements >= kStreamElements; }

}  // namespace

double cross_entropy(const KernelTable& table, CrossEntropyArgs args) {
  // Exponentials: as long as moving four times the bytes.
  const std::int64_t bytes = 4 * 8 * args.rows * args.classes;
  parallel_for(args.rows, threads_for(bytes), bytes,
               [&](std::int64_t begin, std::int64_t end) { table.cross_entropy(args, begin, end); });
  return table.sum(args.losses, args.rows) / double(args.rows);
}

void roof_step(const KernelTable& table, const RoofArgs& args, int arrays, std::int64_t n) {
  const std::int64_t bytes = (4 + 8 * arrays) * n;
  const int threads = threads_for(bytes);
  parallel_for((n + kChunk - 1) / kChunk, threads, bytes, [&](std::int64_t begin, std::int64_t end) {
    table.roof_step[arrays - 1](args, begin * kChunk, std::min(end * kChunk, n));
  });
}

void roof_map(const KernelTable& table, const float* a, const float* b, float* out, std::int64_t n) {
  const bool streamed = streams(n);
  const std::int64_t bytes = (b ? 12 : 8) * n;
  const int threads = threads_for(bytes);
  parallel_for((n + kChunk - 1) / kChunk, threads, bytes, [&](std::int64_t begin, std::int64_t end) {
    table.roof_map(a, b, out, streamed, begin * kChunk, std::min(end * kChunk, n));
  });
}

}  // namespace fusedstep::runtime
