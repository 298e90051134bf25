#include "runtime/step.h"

#include <algorithm>

#include "runtime/threads.h"

namespace fusedstep::runtime {
namespace {

// What a chunk costs beside its elements, in elements.
constexpr std::int64_t kChunkOverhead = 128;

struct Chunk {
  const StepTensor* tensor;
  std::int64_t begin, end;
  std::int64_t cost_before;
};

}  // namespace

void run_step(const std::vector<StepTensor>& tensors) {
  std::int64_t bytes = 0;
  for (const StepTensor& t : tensors) bytes += t.size * t.bytes_per_element;
  const int threads = threads_for(bytes);
  if (threads == 1) {
    for (const StepTensor& t : tensors) {
      for (std::int64_t at = 0; at < t.size; at += kChunk) t.kernel(t.args, at, std::min(at + kChunk, t.size));
    }
    return;
  }
  std::vector<Chunk> chunks;
  std::int64_t cost = 0;
  for (const StepTensor& t : tensors) {
    for (std::int64_t at = 0; at < t.size; at += kChunk) {
      const std::int64_t end = std::min(at + kChunk, t.size);
      chunks.push_back({&t, at, end, cost});
      cost += end - at + kChunkOverhead;
    }
  }
  // Equal shares of cost, contiguous: a thread meets the same memory in every step.
  const auto shares = std::min<std::int64_t>(threads, std::int64_t(chunks.size()));
  parallel_for(shares, threads, bytes, [&](std::int64_t first, std::int64_t last) {
    const auto starts_before = [](const Chunk& chunk, std::int64_t limit) { return chunk.cost_before < limit; };
    auto chunk = std::lower_bound(chunks.begin(), chunks.end(), cost * first / shares, starts_before);
    const auto stop = std::lower_bound(chunk, chunks.end(), cost * last / shares, starts_before);
    for (; chunk != stop; ++chunk) chunk->tensor->kernel(chunk->tensor->args, chunk->begin, chunk->end);
  });
}

}  // namespace fusedstep::runtime
