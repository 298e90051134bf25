#include "runtime/layers.h"

#include <algorithm>

#include "runtime/threads.h"

namespace fusedstep::runtime {
namespace {

constexpr std::int64_t kSerialElements = 16 * 1024;
// An output beyond this is read again from memory anyway; streamed, it is not read before it is written.
constexpr std::int64_t kStreamElements = 1024 * 1024;
// Rows: channels that share a cache line stay with one thread.
constexpr std::int64_t kStripe = 32;

int threads_for(std::int64_t elements) { return elements < kSerialElements ? 1 : num_threads(); }

template <class Args>
void over_channels(void (*planes)(const Args&, std::int64_t, std::int64_t),
                   void (*rows)(const Args&, std::int64_t, std::int64_t), const Args& args, bool is_planes) {
  const int threads = threads_for(args.n * args.c * args.l);
  if (is_planes) {
    parallel_for(args.c, threads, [&](std::int64_t begin, std::int64_t end) { planes(args, begin, end); });
  } else {
    parallel_for((args.c + kStripe - 1) / kStripe, threads, [&](std::int64_t begin, std::int64_t end) {
      rows(args, begin * kStripe, std::min(end * kStripe, args.c));
    });
  }
}

}  // namespace

void batch_norm(const KernelTable& table, BatchNormArgs args, bool planes) {
  args.stream = args.n * args.c * args.l >= kStreamElements;
  over_channels(table.batch_norm_planes, table.batch_norm_rows, args, planes);
}

void batch_norm_backward(const KernelTable& table, BatchNormBackwardArgs args, bool planes) {
  args.stream = args.n * args.c * args.l >= kStreamElements;
  over_channels(table.batch_norm_planes_backward, table.batch_norm_rows_backward, args, planes);
}

double cross_entropy(const KernelTable& table, CrossEntropyArgs args) {
  parallel_for(args.rows, threads_for(args.rows * args.classes),
               [&](std::int64_t begin, std::int64_t end) { table.cross_entropy(args, begin, end); });
  return table.sum(args.losses, args.rows) / double(args.rows);
}

void roof_step(const KernelTable& table, const RoofArgs& args, int arrays, std::int64_t n) {
  parallel_for((n + kChunk - 1) / kChunk, num_threads(), [&](std::int64_t begin, std::int64_t end) {
    table.roof_step[arrays - 1](args, begin * kChunk, std::min(end * kChunk, n));
  });
}

void roof_map(const KernelTable& table, const float* a, const float* b, float* out, std::int64_t n) {
  const bool streamed = n >= kStreamElements;
  parallel_for((n + kChunk - 1) / kChunk, num_threads(), [&](std::int64_t begin, std::int64_t end) {
    table.roof_map(a, b, out, streamed, begin * kChunk, std::min(end * kChunk, n));
  });
}

}  // namespace fusedstep::runtime
