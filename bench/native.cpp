// Every kernel without Python, beside a loop that moves the same bytes. The table at the end is the roof's time over
// the kernel's: 1 is as fast as the memory. A good call:
//   fusedstep_bench --benchmark_repetitions=15 --benchmark_enable_random_interleaving=true
//     --benchmark_min_time=0.05 --benchmark_filter=adamw/float32/262144
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/batch_norm.h"
#include "runtime/dropout.h"
#include "runtime/isa.h"
#include "runtime/losses.h"
#include "runtime/registry.h"
#include "runtime/roofs.h"
#include "runtime/step.h"
#include "runtime/threads.h"

namespace {

using namespace fusedstep;
using benchmark::State;

constexpr char kRoof[] = "/roof";

// Cache-aligned, and in huge pages where it is large, as NumPy's arrays are.
template <class T>
class Array {
 public:
  explicit Array(std::int64_t n) {
    constexpr std::size_t kHugePage = 2 << 20;
    const std::size_t bytes = std::size_t(n) * sizeof(T);
    const std::size_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    data_.reset(static_cast<T*>(std::aligned_alloc(alignment, rounded)));
    if (alignment == kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
    for (std::int64_t i = 0; i < n; ++i) data_.get()[i] = T(0.001) * T(i % 1000 + 1);
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

void use_threads(int threads) {
  runtime::force_parallel(true);
  runtime::set_num_threads(threads);
}

std::string name_of(const std::string& what, std::int64_t n, int threads) {
  return what + "/" + std::to_string(n) + "/threads:" + std::to_string(threads);
}

template <class T>
void step(State& state, const runtime::Rule& rule, std::vector<double> hypers, std::int64_t n, int threads) {
  use_threads(threads);
  const int variant = rule.variant(hypers.data());
  const Dtype dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
  StepArgs args = {};
  args.states = __builtin_popcount(rule.keeps[std::size_t(variant)]);
  std::vector<Array<T>> arrays;
  for (int k = 0; k < 2 + args.states; ++k) arrays.emplace_back(n);
  alignas(16) unsigned char coefficients[kMaxCoefficientBytes];
  double scalars[kMaxScalars] = {0.1, 0.1, 0.1};
  rule.coefficients(hypers.data(), {10, false}, dtype, scalars, coefficients);
  const KernelTable& table = *runtime::active_table();
  args.param = arrays[0].get();
  args.grad = arrays[1].get();
  for (int k = 0; k < args.states; ++k) args.state[k] = arrays[std::size_t(2 + k)].get();
  args.coefficients = coefficients;
  args.grad_factor = 1.0;
  args.update = table.rules[rule.index]->update[int(dtype)][variant][0];
  args.measure = table.rules[rule.index]->measure[int(dtype)][variant][0];
  args.measures = rule.sums;
  const std::int64_t bytes = std::int64_t(sizeof(T)) * (3 + 2 * args.states);
  const std::vector<runtime::StepTensor> tensors = {{args, dtype, n, bytes, nullptr, 0, 0, 0.0}};
  runtime::Step whole;
  std::vector<double> sums;
  for (auto _ : state) {
    whole.cut(tensors);
    if (rule.sums > 0) whole.sum(table.step->measure_sums, sums);
    whole.run(table.step->run);
  }
  state.SetBytesProcessed(state.iterations() * n * bytes);
}

void step_roof(State& state, int arrays, std::int64_t floats, int threads) {
  use_threads(threads);
  std::vector<Array<float>> memory;
  for (int k = 0; k < 1 + arrays; ++k) memory.emplace_back(floats);
  RoofArgs args = {};
  args.read = memory[0].get();
  for (int k = 0; k < arrays; ++k) args.read_write[k] = memory[std::size_t(1 + k)].get();
  for (auto _ : state) runtime::roof_step(*runtime::active_table(), args, arrays, floats);
  state.SetBytesProcessed(state.iterations() * floats * 4 * (1 + 2 * arrays));
}

// Hyper-parameters that lead to each variant of a rule; zeros and flags are what tells them apart.
std::vector<std::vector<double>> variants(const runtime::Rule& rule) {
  std::vector<double> values;
  for (const Field& field : rule.fields) {
    for (int k = 0; k < field.count; ++k) {
      // The second of two is the larger, and of two factors more than 1; a choice is the place of one.
      const bool second = field.count == 2 && k == 1;
      values.push_back(field.domain == Domain::choice ? 1.0 : second && field.domain == Domain::positive ? 1.5 : 0.5);
    }
  }
  std::map<int, std::vector<double>> found;
  for (unsigned bits = 0; bits < 1u << values.size(); ++bits) {
    std::vector<double> hypers(values.size());
    for (std::size_t k = 0; k < values.size(); ++k) hypers[k] = bits >> k & 1 ? values[k] : 0.0;
    if (rule.refuse(hypers.data()) == nullptr && rule.coupled_decay(hypers.data()) == 0.0) {
      found[rule.variant(hypers.data())] = hypers;
    }
  }
  std::vector<std::vector<double>> all;
  for (const auto& [variant, hypers] : found) all.push_back(hypers);
  return all;
}

void register_steps(int threads) {
  for (const runtime::Rule& rule : runtime::rules()) {
    if (!rule.native) continue;
    for (const std::vector<double>& hypers : variants(rule)) {
      const int variant = rule.variant(hypers.data());
      const int arrays = 1 + __builtin_popcount(rule.keeps[std::size_t(variant)]);
      const std::string suffix = rule.keeps.size() > 1 ? ":" + std::to_string(variant) : "";
      for (std::int64_t n = 1 << 10; n <= 1 << 26; n *= 4) {
        const std::string single = name_of(rule.name + suffix + "/float32", n, threads);
        const std::string twice = name_of(rule.name + suffix + "/float64", n, threads);
        const auto add = [](const std::string& name, auto run) {
          benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMicrosecond);
        };
        add(single, [=, &rule](State& s) { step<float>(s, rule, hypers, n, threads); });
        add(single + kRoof, [=](State& s) { step_roof(s, arrays, n, threads); });
        if (n == 1 << 26) continue;  // as many bytes as the next size of float32
        add(twice, [=, &rule](State& s) { step<double>(s, rule, hypers, n, threads); });
        add(twice + kRoof, [=](State& s) { step_roof(s, arrays, 2 * n, threads); });
      }
    }
  }
}

struct Shape {
  std::int64_t n, c, l;
};

void batch_norm(State& state, Shape shape, bool backward, int threads) {
  use_threads(threads);
  const std::int64_t size = shape.n * shape.c * shape.l;
  const Array<float> x(size), dy(size), out(size);
  const Array<double> weight(shape.c), bias(shape.c), mean(shape.c), inv_std(shape.c), m2(shape.c), sums(2 * shape.c);
  const runtime::BatchNormPlan plan = {*runtime::active_table(), Dtype::float32, shape.l > 1 ? kPlanes : kRows};
  BatchNormArgs forward_args = {};
  forward_args.n = shape.n;
  forward_args.c = shape.c;
  forward_args.l = shape.l;
  forward_args.x = x.get();
  forward_args.weight = weight.get();
  forward_args.bias = bias.get();
  forward_args.y = out.get();
  forward_args.mean = mean.get();
  forward_args.inv_std = inv_std.get();
  forward_args.m2 = m2.get();
  forward_args.eps = 1e-5;
  BatchNormGradientArgs backward_args = {};
  backward_args.n = shape.n;
  backward_args.c = shape.c;
  backward_args.l = shape.l;
  backward_args.x = x.get();
  backward_args.dy = dy.get();
  backward_args.scale = weight.get();
  backward_args.mean = mean.get();
  backward_args.inv_std = inv_std.get();
  backward_args.sum_dy = sums.get();
  backward_args.sum_dy_d = sums.get() + shape.c;
  backward_args.dx = out.get();
  backward_args.count = double(shape.n * shape.l);
  backward_args.training = true;
  for (auto _ : state) {
    if (backward) {
      runtime::batch_norm_backward(plan, backward_args);
    } else {
      runtime::batch_norm(plan, forward_args, true);
    }
  }
  state.SetBytesProcessed(state.iterations() * size * (backward ? 12 : 8));
}

void map_roof(State& state, std::int64_t size, bool two, int threads) {
  use_threads(threads);
  const Array<float> a(size), b(size), out(size);
  for (auto _ : state) runtime::roof_map(*runtime::active_table(), a.get(), two ? b.get() : nullptr, out.get(), size);
  state.SetBytesProcessed(state.iterations() * size * (two ? 12 : 8));
}

void cross_entropy(State& state, std::int64_t rows, std::int64_t classes, int threads) {
  use_threads(threads);
  const Array<float> logits(rows * classes), gradient(rows * classes);
  const std::vector<std::int64_t> labels(static_cast<std::size_t>(rows), classes / 2);
  std::vector<double> losses(static_cast<std::size_t>(rows));
  CrossEntropyArgs args = {};
  args.rows = rows;
  args.classes = classes;
  args.logits = logits.get();
  args.labels = labels.data();
  args.ignore = -100;
  args.dlogits = gradient.get();
  args.losses = losses.data();
  args.scale = 1.0 / double(rows);
  for (auto _ : state) runtime::cross_entropy(*runtime::active_table(), Dtype::float32, args, 0.0);
  state.SetBytesProcessed(state.iterations() * rows * classes * 8);
}

void dropout(State& state, std::int64_t size, int threads) {
  use_threads(threads);
  const Array<float> x(size), y(size);
  DropoutArgs args = {};
  args.x = x.get();
  args.y = y.get();
  args.unit = 1;
  for (auto _ : state) runtime::dropout(*runtime::active_table(), Dtype::float32, args, 0.5, size);
  state.SetBytesProcessed(state.iterations() * size * 8);
}

void register_layers(int threads) {
  const auto add = [](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMicrosecond);
  };
  for (const Shape shape :
       {Shape{64, 256, 1}, Shape{4096, 1024, 1}, Shape{32, 512, 49}, Shape{32, 128, 784}, Shape{32, 64, 3136}}) {
    for (const bool backward : {false, true}) {
      const std::int64_t size = shape.n * shape.c * shape.l;
      const std::string name =
          name_of(std::string("batch_norm_") + (backward ? "backward/" : "forward/") + std::to_string(shape.n) + "x" +
                      std::to_string(shape.c) + "x" + std::to_string(shape.l),
                  size, threads);
      add(name, [=](State& s) { batch_norm(s, shape, backward, threads); });
      add(name + kRoof, [=](State& s) { map_roof(s, size, backward, threads); });
    }
  }
  for (const std::int64_t size : {std::int64_t{65536}, std::int64_t{4} << 20}) {
    const std::string name = name_of("dropout", size, threads);
    add(name, [=](State& s) { dropout(s, size, threads); });
    add(name + kRoof, [=](State& s) { map_roof(s, size, false, threads); });
  }
  for (const auto& [rows, classes] :
       {std::pair<std::int64_t, std::int64_t>{64, 10}, {4096, 1000}, {256, 50257}, {8192, 128}}) {
    const std::string name =
        name_of("cross_entropy/" + std::to_string(rows) + "x" + std::to_string(classes), rows * classes, threads);
    add(name, [=, rows = rows, classes = classes](State& s) { cross_entropy(s, rows, classes, threads); });
    add(name + kRoof, [=, size = rows * classes](State& s) { map_roof(s, size, false, threads); });
  }
}

// Prints as ever, and keeps the times for the ratios.
class Reporter : public benchmark::ConsoleReporter {
 public:
  Reporter() : ConsoleReporter(OO_Tabular) {}

  void ReportRuns(const std::vector<Run>& runs) override {
    ConsoleReporter::ReportRuns(runs);
    for (const Run& run : runs) {
      if (run.run_type == Run::RT_Iteration) times_[run.run_name.function_name].push_back(run.GetAdjustedRealTime());
    }
  }

  void print_ratios() {
    std::printf("\n%-48s %12s %12s %8s\n", "median of repetitions, µs", "kernel", "roof", "ratio");
    for (auto& [name, times] : times_) {
      const auto roof = times_.find(name + kRoof);
      if (roof == times_.end()) continue;
      const double ours = median(times), theirs = median(roof->second);
      std::printf("%-48s %12.2f %12.2f %8.3f\n", name.c_str(), ours, theirs, theirs / ours);
    }
  }

 private:
  static double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  }
  std::map<std::string, std::vector<double>> times_;
};

}  // namespace

int main(int argc, char** argv) {
  if (runtime::active_table() == nullptr) {
    std::fprintf(stderr, "FUSEDSTEP_ISA: the reference is not for timing; choose a native set\n");
    return 2;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::AddCustomContext("instruction set", runtime::active_set());
  for (const int threads : {1, 2}) {
    register_steps(threads);
    register_layers(threads);
  }
  Reporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  reporter.print_ratios();
  return 0;
}
