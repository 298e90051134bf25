#include "runtime/step.h"

#include <algorithm>

#include "runtime/threads.h"

namespace fusedstep::runtime {
namespace {

// The fixed cost of a tensor, or of a row, in elements.
constexpr std::int64_t kOverhead = 128;

std::int64_t chunks_in(std::int64_t elements) { return (elements + kChunk - 1) / kChunk; }
std::int64_t items_of(const StepTensor& t) { return t.rows != nullptr ? t.row_count : t.size; }
std::int64_t item_cost(const StepTensor& t) { return t.rows != nullptr ? t.row_size + kOverhead : 1; }

}  // namespace

void Step::cut(const std::vector<StepTensor>& tensors) {
  tensors_ = &tensors;
  costs_.clear();
  pieces_.clear();
  bytes_ = gradient_bytes_ = 0;
  std::int64_t cost = 0, piece = 0;
  for (const StepTensor& t : tensors) {
    costs_.push_back(cost);
    pieces_.push_back(piece);
    const std::int64_t elements = t.rows != nullptr ? t.row_count * t.row_size : t.size;
    cost += kOverhead + items_of(t) * item_cost(t);
    piece += t.rows != nullptr ? t.row_count * chunks_in(t.row_size) : chunks_in(t.size);
    bytes_ += elements * t.bytes_per_element;
    gradient_bytes_ += elements * item_bytes(t.args.grad_dtype);
  }
  costs_.push_back(cost);
  pieces_.push_back(piece);
}

void Step::run_rows(const StepTensor& t, std::int64_t from, std::int64_t to, StepPass kernel, double* sums) {
  for (std::int64_t k = from; k < to; ++k) {
    StepArgs row = t.args;
    const std::int64_t offset = t.rows[k] * t.row_size;
    row.param = static_cast<char*>(row.param) + offset * item_bytes(row.param_dtype);
    row.grad = static_cast<const char*>(row.grad) + k * t.row_size * item_bytes(row.grad_dtype);
    if (row.copy != nullptr) row.copy = static_cast<char*>(row.copy) + offset * item_bytes(row.copy_dtype);
    row.offset = offset;
    for (int s = 0; s < row.states; ++s) {
      row.state[s] = static_cast<char*>(row.state[s]) + offset * item_bytes(row.state_dtype[s]);
    }
    kernel(row, 0, t.row_size, sums == nullptr ? nullptr : sums + k * chunks_in(t.row_size) * kStepSums);
  }
}

void Step::run_range(Place from, Place to, const StepPass (&kernels)[kMathsDtypes], double* sums) const {
  for (std::size_t k = from.tensor; k <= to.tensor && k < tensors_->size(); ++k) {
    const StepTensor& t = (*tensors_)[k];
    const std::int64_t begin = k == from.tensor ? from.item : 0;
    const std::int64_t end = k == to.tensor ? to.item : items_of(t);
    if (begin >= end) continue;
    const StepPass kernel = kernels[int(t.dtype)];
    double* out = sums == nullptr ? nullptr : sums + pieces_[k] * kStepSums;
    if (t.rows != nullptr) {
      run_rows(t, begin, end, kernel, out);
    } else {
      kernel(t.args, begin, end, out == nullptr ? nullptr : out + begin / kChunk * kStepSums);
    }
  }
}

// Elements are cut at multiples of the granule, rows between any two.
Step::Place Step::place_of(std::int64_t cost, std::int64_t granule) const {
  const auto next = std::upper_bound(costs_.begin(), costs_.end(), cost);
  if (next == costs_.end()) return {tensors_->size(), 0};
  const std::size_t k = std::size_t(next - costs_.begin()) - 1;
  const StepTensor& t = (*tensors_)[k];
  std::int64_t item = std::max<std::int64_t>(0, cost - costs_[k] - kOverhead) / item_cost(t);
  if (t.rows == nullptr) item = (item + granule / 2) / granule * granule;
  return {k, std::min(item, items_of(t))};
}

void Step::run(const StepPass (&kernels)[kMathsDtypes], double* sums, Reads reads) {
  const std::int64_t bytes = reads == Reads::gradient ? gradient_bytes_ : bytes_;
  const std::int64_t granule = sums == nullptr ? kBlock : kChunk;
  const std::int64_t cost = costs_.back();
  const int threads = threads_for(bytes);
  if (threads == 1) return run_range({0, 0}, {tensors_->size(), 0}, kernels, sums);
  // Equal shares of cost, contiguous: a thread meets the same memory in every step.
  parallel_for(threads, threads, bytes, [&](std::int64_t first, std::int64_t last) {
    run_range(place_of(cost * first / threads, granule), place_of(cost * last / threads, granule), kernels, sums);
  });
}

void Step::reserve(std::vector<double>& sums) {
  piece_sums_.reserve(std::size_t(pieces_.back()) * kStepSums);
  sums.reserve(tensors_->size() * kStepSums);
}

void Step::sum(const StepPass (&kernels)[kMathsDtypes], std::vector<double>& sums, Reads reads) {
  piece_sums_.assign(std::size_t(pieces_.back()) * kStepSums, 0.0);
  run(kernels, piece_sums_.data(), reads);
  sums.assign(tensors_->size() * kStepSums, 0.0);
  for (std::size_t t = 0; t < tensors_->size(); ++t) {
    sums[t * kStepSums + kGradSquares] = (*tensors_)[t].squares;
    for (std::int64_t piece = pieces_[t]; piece < pieces_[t + 1]; ++piece) {
      for (int k = 0; k < kStepSums; ++k) sums[t * kStepSums + k] += piece_sums_[std::size_t(piece) * kStepSums + k];
    }
  }
}

}  // namespace fusedstep::runtime
