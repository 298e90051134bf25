#include "runtime/step.h"

#include <algorithm>

#include "runtime/threads.h"

namespace fusedstep::runtime {
namespace {

// What a chunk, or a row, costs beside its elements, in elements.
constexpr std::int64_t kChunkOverhead = 128;

std::int64_t chunks_in(std::int64_t elements) { return (elements + kChunk - 1) / kChunk; }

}  // namespace

void Step::cut(const std::vector<StepTensor>& tensors) {
  chunks_.clear();
  pieces_.clear();
  bytes_ = cost_ = 0;
  std::int64_t piece = 0;
  for (const StepTensor& t : tensors) {
    pieces_.push_back(piece);
    if (t.rows == nullptr) {
      for (std::int64_t at = 0; at < t.size; at += kChunk) {
        const std::int64_t end = std::min(at + kChunk, t.size);
        chunks_.push_back({&t, at, end, piece++, cost_});
        cost_ += end - at + kChunkOverhead;
      }
      bytes_ += t.size * t.bytes_per_element;
      continue;
    }
    const std::int64_t rows = std::max<std::int64_t>(1, kChunk / std::max<std::int64_t>(1, t.row_size));
    for (std::int64_t at = 0; at < t.row_count; at += rows) {
      const std::int64_t end = std::min(at + rows, t.row_count);
      chunks_.push_back({&t, at, end, piece, cost_});
      piece += (end - at) * chunks_in(t.row_size);
      cost_ += (end - at) * (t.row_size + kChunkOverhead);
    }
    bytes_ += t.row_count * t.row_size * t.bytes_per_element;
  }
  pieces_.push_back(piece);
}

void Step::run_rows(const Chunk& chunk, const StepPass (&kernels)[kDtypes], double* sums) {
  const StepTensor& t = *chunk.tensor;
  const std::int64_t row_bytes = t.row_size * (t.dtype == Dtype::float32 ? 4 : 8);
  for (std::int64_t k = chunk.begin; k < chunk.end; ++k) {
    StepArgs row = t.args;
    const std::int64_t offset = t.rows[k] * row_bytes;
    row.param = static_cast<char*>(row.param) + offset;
    row.grad = static_cast<const char*>(row.grad) + k * row_bytes;
    for (int s = 0; s < row.states; ++s) row.state[s] = static_cast<char*>(row.state[s]) + offset;
    kernels[int(t.dtype)](row, 0, t.row_size, sums);
    if (sums != nullptr) sums += chunks_in(t.row_size) * kStepSums;
  }
}

// A tensor's chunks that follow each other are one call.
void Step::run_range(const Chunk* chunk, const Chunk* stop, const StepPass (&kernels)[kDtypes], double* sums) const {
  while (chunk != stop) {
    const StepTensor& t = *chunk->tensor;
    double* out = sums == nullptr ? nullptr : sums + chunk->piece * kStepSums;
    if (t.rows != nullptr) {
      run_rows(*chunk++, kernels, out);
      continue;
    }
    const std::int64_t begin = chunk->begin;
    std::int64_t end = begin;
    for (; chunk != stop && chunk->tensor == &t; ++chunk) end = chunk->end;
    kernels[int(t.dtype)](t.args, begin, end, out);
  }
}

void Step::run_chunks(const StepPass (&kernels)[kDtypes], double* sums) const {
  const Chunk *first = chunks_.data(), *last = first + chunks_.size();
  const int threads = threads_for(bytes_);
  if (threads == 1) return run_range(first, last, kernels, sums);
  // Equal shares of cost, contiguous: a thread meets the same memory in every step.
  const auto shares = std::min<std::int64_t>(threads, std::int64_t(chunks_.size()));
  parallel_for(shares, threads, bytes_, [&](std::int64_t share, std::int64_t share_end) {
    const auto starts_before = [](const Chunk& chunk, std::int64_t limit) { return chunk.cost_before < limit; };
    const Chunk* chunk = std::lower_bound(first, last, cost_ * share / shares, starts_before);
    const Chunk* stop = std::lower_bound(chunk, last, cost_ * share_end / shares, starts_before);
    run_range(chunk, stop, kernels, sums);
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
