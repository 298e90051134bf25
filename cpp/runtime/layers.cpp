#include "runtime/layers.h"

#include <algorithm>
#include <vector>

#include "runtime/threads.h"

namespace fusedstep::runtime {
namespace {

// An output beyond this is read again from memory anyway; streamed, it is not read before it is written.
constexpr std::int64_t kStreamElements = 1024 * 1024;
bool streams(std::int64_t elements) { return elements >= kStreamElements; }

std::int64_t stats_blocks(std::int64_t rows) { return (rows + kStatsRows - 1) / kStatsRows; }

}  // namespace

void batch_norm(const KernelTable& table, BatchNormArgs args, bool planes) {
  const std::int64_t elements = args.n * args.c * args.l;
  const std::int64_t bytes = 8 * elements;
  const int threads = threads_for(bytes);
  args.stream = streams(elements);
  if (planes) {
    parallel_for(args.c, threads, bytes,
                 [&](std::int64_t begin, std::int64_t end) { table.batch_norm_planes(args, begin, end); });
    return;
  }
  if (args.training) {
    const std::int64_t blocks = stats_blocks(args.n);
    std::vector<double> workspace(static_cast<std::size_t>(2 * args.c * blocks));
    parallel_for(blocks, threads, bytes / 2, [&](std::int64_t begin, std::int64_t end) {
      table.batch_norm_rows_moments(args, workspace.data(), begin, end);
    });
    table.batch_norm_rows_statistics(args, workspace.data());
  }
  parallel_for(args.n, threads, bytes / 2,
               [&](std::int64_t begin, std::int64_t end) { table.batch_norm_rows_apply(args, begin, end); });
}

void batch_norm_backward(const KernelTable& table, BatchNormBackwardArgs args, bool planes) {
  const std::int64_t elements = args.n * args.c * args.l;
  const std::int64_t bytes = 12 * elements;
  const int threads = threads_for(bytes);
  args.stream = streams(elements);
  if (planes) {
    parallel_for(args.c, threads, bytes,
                 [&](std::int64_t begin, std::int64_t end) { table.batch_norm_planes_backward(args, begin, end); });
    return;
  }
  const std::int64_t blocks = stats_blocks(args.n);
  std::vector<double> workspace(static_cast<std::size_t>(2 * args.c * blocks));
  parallel_for(blocks, threads, bytes / 2, [&](std::int64_t begin, std::int64_t end) {
    table.batch_norm_rows_sums(args, workspace.data(), begin, end);
  });
  table.batch_norm_rows_total(args, workspace.data());
  parallel_for(args.n, threads, bytes / 2, [&](std::int64_t begin, std::int64_t end) {
    table.batch_norm_rows_gradient(args, workspace.data(), begin, end);
  });
}

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
