#include "runtime/layers.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "runtime/threads.h"

namespace fusedstep::runtime {
namespace {

// An output beyond this is read again from memory anyway; streamed, it is not read before it is written.
constexpr std::int64_t kStreamElements = 2 * 1024 * 1024;
bool streams(std::int64_t elements) { return elements >= kStreamElements; }

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

// body(begin, end) for the elements, whole chunks of them.
template <class Body>
void each_chunk(std::int64_t n, std::int64_t bytes, const Body& body) {
  parallel_for((n + kChunk - 1) / kChunk, threads_for(bytes), bytes,
               [&](std::int64_t begin, std::int64_t end) { body(begin * kChunk, std::min(end * kChunk, n)); });
}

}  // namespace

void cross_entropy(const KernelTable& table, Dtype dtype, Goal goal, CrossEntropyArgs args) {
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
  std::vector<double> sums(std::size_t((n + kChunk - 1) / kChunk));
  each_chunk(n, 4 * 12 * n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; i += kChunk) {
      sums[std::size_t(i / kChunk)] =
          table.elementwise->loss[int(dtype)][int(loss)](args, i, std::min(i + kChunk, end));
    }
  });
  return table.arrays->sum(sums.data(), std::int64_t(sums.size()));
}

void dropout(const KernelTable& table, Dtype dtype, DropoutArgs args, std::int64_t n) {
  args.stream = args.y != args.x && args.y != args.residual && streams(n);
  each_chunk(n, 2 * 8 * n, [&](std::int64_t begin, std::int64_t end) {
    table.dropout->dropout[int(dtype)][args.residual != nullptr](args, begin, end);
  });
}

void gather_rows(const char* source, const std::int64_t* rows, char* out, std::int64_t count, std::int64_t row_bytes) {
  // Rows lie anywhere in memory, where the processor's own prefetch does not look.
  constexpr std::int64_t kAhead = 4, kLine = 64, kFetched = 4096;
  const std::int64_t bytes = 2 * count * row_bytes;
  parallel_for(count, threads_for(bytes), bytes, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) {
      if (k + kAhead < end) {
        const char* next = source + rows[k + kAhead] * row_bytes;
        for (std::int64_t i = 0; i < row_bytes && i < kFetched; i += kLine) __builtin_prefetch(next + i);
      }
      std::memcpy(out + k * row_bytes, source + rows[k] * row_bytes, std::size_t(row_bytes));
    }
  });
}

void roof_step(const KernelTable& table, const RoofArgs& args, int arrays, std::int64_t n) {
  const std::int64_t bytes = (4 + 8 * arrays) * n;
  const int threads = threads_for(bytes);
  parallel_for((n + kChunk - 1) / kChunk, threads, bytes, [&](std::int64_t begin, std::int64_t end) {
    table.roofs->step[arrays - 1](args, begin * kChunk, std::min(end * kChunk, n));
  });
}

void roof_map(const KernelTable& table, const float* a, const float* b, float* out, std::int64_t n) {
  const bool streamed = streams(n);
  const std::int64_t bytes = (b ? 12 : 8) * n;
  const int threads = threads_for(bytes);
  parallel_for((n + kChunk - 1) / kChunk, threads, bytes, [&](std::int64_t begin, std::int64_t end) {
    table.roofs->map(a, b, out, streamed, begin * kChunk, std::min(end * kChunk, n));
  });
}

}  // namespace fusedstep::runtime
