#include "runtime/losses.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "runtime/chunks.h"

namespace fusedstep::runtime {
namespace {

// A row of the dtype of the arithmetic for every thread.
class Scratch {
 public:
  Scratch(Dtype dtype, std::int64_t classes, int threads)
      : bytes_((classes * item_bytes(maths_dtype(dtype)) + 2 * kPage - 1) / kPage * kPage) {
    memory_.reset(static_cast<char*>(std::aligned_alloc(kPage, std::size_t(bytes_) * std::size_t(threads))));
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  void* next() { return memory_.get() + bytes_ * taken_++; }

 private:
  // Apart by a page: the processor's prefetch would fetch what another thread is writing.
  static constexpr std::int64_t kPage = 4096;
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::int64_t bytes_;
  std::unique_ptr<char, Free> memory_;
  std::atomic<int> taken_{0};
};

// body(scratch, begin, end) for the rows.
template <class Body>
void each_row(Dtype dtype, std::int64_t rows, std::int64_t classes, const Body& body) {
  // Exponentials: as long as moving four times the bytes of floats.
  const std::int64_t bytes = 4 * 8 * rows * classes;
  const int threads = threads_for(bytes);
  Scratch scratch(dtype, classes, threads);
  parallel_for(rows, threads, bytes, [&](std::int64_t begin, std::int64_t end) { body(scratch.next(), begin, end); });
}

}  // namespace

double mean_divisor(const std::int64_t* labels, std::int64_t rows, std::int64_t ignore, const double* weights) {
  if (weights == nullptr) return double(rows - std::count(labels, labels + rows, ignore));
  double divisor = 0.0;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (labels[row] != ignore) divisor += weights[labels[row]];
  }
  return divisor;
}

void cross_entropy(const KernelTable& table, Dtype dtype, CrossEntropyArgs args, double smoothing) {
  args.peak = 1.0 - smoothing;
  args.rest = smoothing / double(args.classes);
  const Goal goal = args.labels != nullptr && smoothing == 0.0         ? Goal::labels
                    : args.labels != nullptr && args.weight == nullptr ? Goal::smooth_labels
                                                                       : Goal::targets;
  // Into the logits themselves, which are in the cache, the usual way.
  args.stream = args.dlogits != args.logits && streams(args.rows * args.classes);
  each_row(dtype, args.rows, args.classes, [&](void* scratch, std::int64_t begin, std::int64_t end) {
    table.cross_entropy->loss[int(dtype)][int(goal)](args, scratch, begin, end);
  });
}

void softmax(const KernelTable& table, Dtype dtype, bool log, SoftmaxArgs args) {
  args.stream = args.out != args.logits && streams(args.rows * args.classes);
  each_row(dtype, args.rows, args.classes, [&](void* scratch, std::int64_t begin, std::int64_t end) {
    table.softmax->softmax[int(dtype)][log](args, scratch, begin, end);
  });
}

double elementwise_loss(const KernelTable& table, Dtype dtype, ElementwiseLoss loss, const ElementwiseLossArgs& args,
                        std::int64_t n) {
  std::vector<double> sums(std::size_t(chunks_of(n)));
  each_chunk(n, 4 * 12 * n, [&](std::int64_t k, std::int64_t begin, std::int64_t end) {
    sums[std::size_t(k)] = table.elementwise->loss[int(dtype)][int(loss)](args, begin, end);
  });
  return table.arrays->sum(sums.data(), std::int64_t(sums.size()));
}

}  // namespace fusedstep::runtime
