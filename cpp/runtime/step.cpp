#include "runtime/step.h"

#include <algorithm>

#include "runtime/threads.h"

namespace fusedstep::runtime {
namespace {

// What a chunk, or a row, costs beside its elements, in elements.
constexpr std::int64_t kChunkOverhead = 128;

}  // namespace

void Step::cut(const std::vector<StepTensor>& tensors) {
  chunks_.clear();
  pieces_.clear();
  bytes_ = cost_ = 0;
  std::int64_t piece = 0;
  for (const StepTensor& t : tensors) {
    pieces_.push_back(piece);
    const std::int64_t items = t.rows != nullptr ? t.row_count : t.size;
    const std::int64_t item_size = t.rows != nullptr ? t.row_size : 1;
    const std::int64_t most = t.rows != nullptr ? std::max<std::int64_t>(1, kChunk / std::max<std::int64_t>(1, item_size))
                                                : kChunk;
    for (std::int64_t at = 0; at < items; at += most) {
      const std::int64_t end = std::min(at + most, items);
      chunks_.push_back({&t, at, end, piece, cost_});
      piece += t.rows != nullptr ? end - at : 1;
      cost_ += (end - at) * item_size + (t.rows != nullptr ? end - at : 1) * kChunkOverhead;
    }
    bytes_ += items * item_size * t.bytes_per_element;
  }
  pieces_.push_back(piece);
}

void Step::run_chunk(const Chunk& chunk, const StepPass (&kernels)[kDtypes], double* sums) {
  const StepTensor& t = *chunk.tensor;
  const StepPass kernel = kernels[int(t.dtype)];
  double* out = sums == nullptr ? nullptr : sums + chunk.piece * kStepSums;
  if (t.rows == nullptr) return kernel(t.args, chunk.begin, chunk.end, out);
  const std::int64_t row_bytes = t.row_size * (t.dtype == Dtype::float32 ? 4 : 8);
  for (std::int64_t k = chunk.begin; k < chunk.end; ++k) {
    StepArgs row = t.args;
    const std::int64_t offset = t.rows[k] * row_bytes;
    row.param = static_cast<char*>(row.param) + offset;
    row.grad = static_cast<const char*>(row.grad) + k * row_bytes;
    for (int s = 0; s < row.states; ++s) row.state[s] = static_cast<char*>(row.state[s]) + offset;
    kernel(row, 0, t.row_size, out);
    if (out != nullptr) out += kStepSums;
  }
}

void Step::run_chunks(const StepPass (&kernels)[kDtypes], double* sums) const {
  const int threads = threads_for(bytes_);
  if (threads == 1) {
    for (const Chunk& chunk : chunks_) run_chunk(chunk, kernels, sums);
    return;
  }
  // Equal shares of cost, contiguous: a thread meets the same memory in every step.
  const auto shares = std::min<std::int64_t>(threads, std::int64_t(chunks_.size()));
  parallel_for(shares, threads, bytes_, [&](std::int64_t first, std::int64_t last) {
    const auto starts_before = [](const Chunk& chunk, std::int64_t limit) { return chunk.cost_before < limit; };
    auto chunk = std::lower_bound(chunks_.begin(), chunks_.end(), cost_ * first / shares, starts_before);
    const auto stop = std::lower_bound(chunk, chunks_.end(), cost_ * last / shares, starts_before);
    for (; chunk != stop; ++chunk) run_chunk(*chunk, kernels, sums);
  });
}

void Step::run(const StepPass (&kernels)[kDtypes]) { run_chunks(kernels, nullptr); }

void Step::run(const StepPass (&kernels)[kDtypes], std::vector<double>& sums) {
  const std::size_t tensors = pieces_.size() - 1;
  piece_sums_.assign(std::size_t(pieces_.back()) * kStepSums, 0.0);
  run_chunks(kernels, piece_sums_.data());
  sums.assign(tensors * kStepSums, 0.0);
  for (std::size_t t = 0; t < tensors; ++t) {
    for (std::int64_t piece = pieces_[t]; piece < pieces_[t + 1]; ++piece) {
      for (int k = 0; k < kStepSums; ++k) sums[t * kStepSums + k] += piece_sums_[std::size_t(piece) * kStepSums + k];
    }
  }
}

}  // namespace fusedstep::runtime
