#include "runtime/batch_norm.h"

#include <memory>

#include "runtime/threads.h"

namespace fusedstep::runtime {
namespace {

struct Line {
  alignas(64) double doubles[8];
};

// Of whole cache lines, so that vectors do not straddle two of them. Kept between calls, and only grows: the pages of a
// fresh one would cost more than the sums.
double* workspace(std::int64_t doubles) {
  thread_local std::unique_ptr<Line[]> memory;
  thread_local std::int64_t size = 0;
  if (doubles > size) {
    memory = std::make_unique_for_overwrite<Line[]>(std::size_t(doubles + 7) / 8);
    size = doubles;
  }
  return static_cast<double*>(static_cast<void*>(memory.get()));
}

// A larger output does not stay in the cache; written past the cache, its memory is not read first.
constexpr std::int64_t kStreamBytes = 4 << 20;

template <class Args>
struct Work {
  const BatchNormKernels& kernels;
  const Args& args;
  Layout layout;
  std::int64_t values = args.n * args.c * args.l;
  std::int64_t blocks = layout == kRows ? row_blocks(args.n, args.c) : plane_blocks(args.n, args.l) * args.c;
  // What a pass over `arrays` arrays moves.
  std::int64_t bytes;
  int threads = threads_for(bytes);

  Work(const BatchNormPlan& plan, Args& a, int arrays)
      : kernels(plan.table.batch_norm[plan.layout][int(plan.dtype)]),
        args(a),
        layout(plan.layout),
        bytes(arrays * values * item_bytes(plan.dtype)) {}

  std::int64_t sums(bool exact) const {
    return layout == kRows ? row_workspace(args.n, args.c, exact) : plane_workspace(args.n, args.c, args.l, exact);
  }
  // Whether there are enough channels to share out whole ones.
  bool by_channel() const { return layout == kPlanes && (threads == 1 || args.c >= 4 * threads); }

  template <class Body>
  void each_block(Body body) const {
    parallel_for(blocks, threads, bytes, body);
  }
  template <class Body>
  void each_written(Body body) const {
    const std::int64_t items = layout == kRows ? (values + kChunk - 1) / kChunk : args.n * args.c * plane_parts(args.l);
    parallel_for(items, threads, bytes, body);
  }
};

// Entries of an array with one number a channel, in whole cache lines.
std::int64_t per_channel(Layout layout, std::int64_t c) {
  return ((layout == kRows ? padded_width(c) : c) + 7) / 8 * 8;
}

constexpr std::int64_t kShift = 8;
// Where the coefficients of rows stand as the output does in its cache line, vectors of both are aligned at once: what
// is streamed begins at a line.
double* placed_as(double* coefficients, const void* output, bool stream) {
  if (stream) coefficients += reinterpret_cast<std::uintptr_t>(output) % 64 / sizeof(double);
  return coefficients;
}

template <class Args>
bool streams(const BatchNormPlan& plan, const Args& args) {
  return args.n * args.c * args.l * item_bytes(plan.dtype) >= kStreamBytes;
}

void take_statistics(const Work<const BatchNormArgs>& work, double* sums, bool exact) {
  const BatchNormArgs& args = work.args;
  work.kernels.pivots(args);
  work.each_block([&](std::int64_t begin, std::int64_t end) { work.kernels.moments[exact](args, sums, begin, end); });
  work.kernels.statistics[exact](args, sums);
}

void apply(const Work<const BatchNormArgs>& work, double* coefficients) {
  work.kernels.coefficients(work.args, coefficients);
  work.each_written(
      [&](std::int64_t begin, std::int64_t end) { work.kernels.apply(work.args, coefficients, begin, end); });
}

// Rows read the means repeated.
const double* means(const Work<const BatchNormGradientArgs>& work, double* repeated) {
  const BatchNormGradientArgs& args = work.args;
  if (work.layout == kPlanes) return args.mean;
  for (std::int64_t k = 0; k < padded_width(args.c); ++k)
    repeated[k] = k < args.c ? args.mean[k] : repeated[k - args.c];
  return repeated;
}

void take_sums(const Work<const BatchNormGradientArgs>& work, double* sums) {
  work.each_block(
      [&](std::int64_t begin, std::int64_t end) { work.kernels.gradient_sums(work.args, sums, begin, end); });
  work.kernels.gradient_totals(work.args, sums);
}

void apply_gradient(const Work<const BatchNormGradientArgs>& work, double* coefficients) {
  work.kernels.gradient_coefficients(work.args, coefficients);
  work.each_written(
      [&](std::int64_t begin, std::int64_t end) { work.kernels.gradient(work.args, coefficients, begin, end); });
}

}  // namespace

void batch_norm_statistics(const BatchNormPlan& plan, BatchNormArgs args) {
  const Work<const BatchNormArgs> work(plan, args, 1);
  const std::int64_t channels = per_channel(plan.layout, args.c);
  double* memory = workspace(channels + work.sums(true));
  args.pivot = memory;
  take_statistics(work, memory + channels, true);
}

void batch_norm(const BatchNormPlan& plan, BatchNormArgs args, bool training) {
  args.stream = args.y != args.x && streams(plan, args);
  const Work<const BatchNormArgs> work(plan, args, 2);
  if (training && work.by_channel()) {
    parallel_for(args.c, work.threads, work.bytes,
                 [&](std::int64_t begin, std::int64_t end) { work.kernels.forward(args, begin, end); });
    return;
  }
  const std::int64_t channels = per_channel(plan.layout, args.c);
  double* memory = workspace((1 + kCoefficients) * channels + kShift + work.sums(false));
  args.pivot = memory;
  if (training) take_statistics(work, memory + (1 + kCoefficients) * channels + kShift, false);
  apply(work, placed_as(memory + channels, args.y, args.stream));
}

void batch_norm_gradient_sums(const BatchNormPlan& plan, BatchNormGradientArgs args) {
  const Work<const BatchNormGradientArgs> work(plan, args, 2);
  const std::int64_t channels = per_channel(plan.layout, args.c);
  double* memory = workspace(channels + work.sums(false));
  args.mean = means(work, memory);
  take_sums(work, memory + channels);
}

void batch_norm_gradient(const BatchNormPlan& plan, BatchNormGradientArgs args) {
  args.stream = streams(plan, args);
  const Work<const BatchNormGradientArgs> work(plan, args, 3);
  double* memory = workspace(kCoefficients * per_channel(plan.layout, args.c) + kShift);
  apply_gradient(work, placed_as(memory, args.dx, args.stream));
}

void batch_norm_backward(const BatchNormPlan& plan, BatchNormGradientArgs args) {
  args.stream = streams(plan, args);
  const Work<const BatchNormGradientArgs> work(plan, args, 3);
  if (work.by_channel()) {
    parallel_for(args.c, work.threads, work.bytes,
                 [&](std::int64_t begin, std::int64_t end) { work.kernels.backward(args, begin, end); });
    return;
  }
  batch_norm_gradient_sums(plan, args);
  batch_norm_gradient(plan, args);
}

}  // namespace fusedstep::runtime
