// The hot loops, each once, for bench/instructions.py to count what they execute. Prints a line a loop: its set, its
// name and how many elements it went over.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/isa.h"
#include "runtime/registry.h"

// Counted is what runs in here. Not of a namespace, so that a tool can name it.
extern "C" __attribute__((noinline)) void counted(const std::function<void()>& loop) { loop(); }

namespace {

using namespace fusedstep;

class Array {
 public:
  Array(Dtype dtype, std::int64_t n)
      : data_(static_cast<unsigned char*>(std::aligned_alloc(64, std::size_t(n * item_bytes(dtype) + 127) / 64 * 64))) {
    unsigned word = 12345;
    for (std::int64_t i = 0; i < n; ++i) {
      word = word * 1664525u + 1013904223u;
      // Small numbers, most of them above 0; in 8 or 16 bits what these bits happen to be, but no NaN.
      const double x = double(word >> 8) * 0x1p-24 - 0.25;
      unsigned char* to = data_.get() + i * item_bytes(dtype);
      const float single = float(x);
      const auto half = std::uint16_t(word >> 16 & 0x3fff), code = std::uint16_t((word >> 16 & 0x7f) | 1);
      if (dtype == Dtype::float32) std::memcpy(to, &single, sizeof single);
      if (dtype == Dtype::float64) std::memcpy(to, &x, sizeof x);
      if (item_bytes(dtype) == 2) std::memcpy(to, &half, sizeof half);
      if (is_code(dtype)) *to = static_cast<unsigned char>(code);
    }
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }
  double* doubles() const { return as<double>(); }

 private:
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  std::unique_ptr<unsigned char, Free> data_;
};

void run(const KernelTable& table, const std::string& name, std::int64_t elements, const std::function<void()>& loop) {
  std::printf("%s %s %lld\n", table.name, name.c_str(), static_cast<long long>(elements));
  counted(loop);
}

void batch_norm(const KernelTable& table, const std::string& name, Dtype dtype, std::int64_t n, std::int64_t c,
                std::int64_t l, bool relu) {
  const std::int64_t size = n * c * l, width = padded_width(c),
                     blocks = l > 1 ? plane_blocks(n, l) * c : row_blocks(n, c);
  const std::int64_t chunks = (size + kChunk - 1) / kChunk;
  const Array x(dtype, size), dy(dtype, size), residual(dtype, size), out(dtype, size), dresidual(dtype, size);
  const Array mask(Dtype::float16, size + 16 * n * c);
  const Array weight(Dtype::float64, width), mean(Dtype::float64, width), inv_std(Dtype::float64, width),
      m2(Dtype::float64, width), pivot(Dtype::float64, width), sums(Dtype::float64, 2 * width),
      coefficients(Dtype::float64, kCoefficients * width), workspace(Dtype::float64, row_workspace(n, c, false));
  const BatchNormKernels& kernels = table.batch_norm[l > 1 ? kPlanes : kRows][int(dtype)];
  BatchNormArgs forward = {};
  forward.n = n;
  forward.c = c;
  forward.l = l;
  forward.x = x.as<void>();
  forward.residual = relu ? residual.as<void>() : nullptr;
  forward.y = out.as<void>();
  forward.mask = relu ? mask.as<std::uint16_t>() : nullptr;
  forward.weight = forward.bias = weight.doubles();
  forward.mean = mean.doubles();
  forward.inv_std = inv_std.doubles();
  forward.m2 = m2.doubles();
  forward.pivot = pivot.doubles();
  forward.eps = 1e-5;
  BatchNormGradientArgs backward = {};
  backward.n = n;
  backward.c = c;
  backward.l = l;
  backward.x = x.as<void>();
  backward.dy = dy.as<void>();
  backward.mask = forward.mask;
  backward.scale = weight.doubles();
  backward.mean = mean.doubles();
  backward.inv_std = inv_std.doubles();
  backward.sum_dy = sums.doubles();
  backward.sum_dy_d = sums.doubles() + c;
  backward.dx = out.as<void>();
  backward.dresidual = relu ? dresidual.as<void>() : nullptr;
  backward.count = double(n * l);
  backward.training = true;
  if (l > 1) {
    run(table, "batch_norm_evaluation/" + name, size, [&] {
      BatchNormArgs evaluation = forward;
      evaluation.folded = true;
      kernels.coefficients(evaluation, coefficients.doubles());
      kernels.apply(evaluation, coefficients.doubles(), 0, n * c * plane_parts(l));
    });
    run(table, "batch_norm_forward/" + name, size, [&] { kernels.forward(forward, 0, c); });
    run(table, "batch_norm_backward/" + name, size, [&] { kernels.backward(backward, 0, c); });
    return;
  }
  run(table, "batch_norm_forward/" + name, size, [&] {
    kernels.pivots(forward);
    kernels.moments[0](forward, workspace.doubles(), 0, blocks);
    kernels.statistics[0](forward, workspace.doubles());
    kernels.coefficients(forward, coefficients.doubles());
    kernels.apply(forward, coefficients.doubles(), 0, chunks);
  });
  for (std::int64_t k = c; k < width; ++k) mean.doubles()[k] = mean.doubles()[k - c];
  run(table, "batch_norm_backward/" + name, size, [&] {
    kernels.gradient_sums(backward, workspace.doubles(), 0, blocks);
    kernels.gradient_totals(backward, workspace.doubles());
    kernels.gradient_coefficients(backward, coefficients.doubles());
    kernels.gradient(backward, coefficients.doubles(), 0, chunks);
  });
}

void losses(const KernelTable& table, std::int64_t rows, std::int64_t classes) {
  const Array logits(Dtype::float32, rows * classes), out(Dtype::float32, rows * classes);
  const Array scratch(Dtype::float32, classes), values(Dtype::float64, rows);
  const std::vector<std::int64_t> labels(std::size_t(rows), classes / 2);
  const std::string shape = std::to_string(rows) + "x" + std::to_string(classes);
  CrossEntropyArgs args = {};
  args.rows = rows;
  args.classes = classes;
  args.logits = logits.as<void>();
  args.labels = labels.data();
  args.ignore = -100;
  args.peak = 1.0;
  args.dlogits = out.as<void>();
  args.losses = values.doubles();
  args.scale = 1.0 / double(rows);
  run(table, "cross_entropy/" + shape, rows * classes,
      [&] { table.cross_entropy->loss[int(Dtype::float32)][int(Goal::labels)](args, scratch.as<void>(), 0, rows); });
  const SoftmaxArgs softmax = {rows, classes, logits.as<void>(), out.as<void>(), false};
  run(table, "softmax/" + shape, rows * classes,
      [&] { table.softmax->softmax[int(Dtype::float32)][false](softmax, scratch.as<void>(), 0, rows); });
}

void elementwise(const KernelTable& table, std::int64_t n) {
  const Array x(Dtype::float32, n), targets(Dtype::float32, n), out(Dtype::float32, n);
  const ElementwiseLossArgs loss = {x.as<void>(), targets.as<void>(), out.as<void>(), nullptr, 1.0, 1.0};
  run(table, "binary_loss", n,
      [&] { table.elementwise->loss[int(Dtype::float32)][int(ElementwiseLoss::binary)](loss, 0, n); });
  DropoutArgs dropout = {};
  dropout.x = x.as<void>();
  dropout.y = out.as<void>();
  dropout.unit = 1;
  dropout.threshold = 1u << 31;
  dropout.scale = 2.0;
  run(table, "dropout", n, [&] { table.dropout->dropout[int(Dtype::float32)][false](dropout, 0, n); });
  dropout.residual = targets.as<void>();
  dropout.stream = true;
  run(table, "dropout_residual", n, [&] { table.dropout->dropout[int(Dtype::float32)][true](dropout, 0, n); });
  run(table, "narrow_bfloat16", n, [&] { table.arrays->narrow[1](x.as<float>(), out.as<void>(), n); });
}

// An AdamW step of arrays of these dtypes; `telemetry`: with its sums.
void step(const KernelTable& table, const std::string& name, std::int64_t n, Dtype stored, Dtype first, Dtype second,
          bool telemetry) {
  const runtime::Rule& rule = *runtime::find_rule("adamw");
  std::vector<double> hypers;
  for (const Field& field : rule.fields) {
    for (int k = 0; k < field.count; ++k) hypers.push_back(field.domain == Domain::flag ? 0.0 : 0.01);
  }
  const int variant = rule.variant(hypers.data());
  alignas(16) unsigned char coefficients[kMaxCoefficientBytes];
  double scalars[kMaxScalars] = {};
  rule.coefficients(hypers.data(), {10, false}, Dtype::float32, scalars, coefficients);
  const Array param(stored, n), grad(stored, n), moment(first, n), square(second, n);
  std::vector<float> scales(std::size_t(scales_of(n)), 0x1p-10f), more = scales;
  std::vector<double> sums(std::size_t((n + kChunk - 1) / kChunk * kStepSums));
  StepArgs args = {};
  args.param = param.as<void>();
  args.grad = grad.as<void>();
  args.states = 2;
  args.state[0] = moment.as<void>();
  args.state[1] = square.as<void>();
  args.scales[0] = scales.data();
  args.scales[1] = more.data();
  args.coefficients = coefficients;
  args.grad_factor = 1.0;
  args.update = table.rules[rule.index]->update[0][variant][0];
  args.telemetry = table.rules[rule.index]->telemetry[0][variant][0];
  args.param_dtype = args.grad_dtype = stored;
  args.state_dtype[0] = first;
  args.state_dtype[1] = second;
  args.coded = stored != Dtype::float32 || first != Dtype::float32;
  if (is_code(first)) args.fused = table.rules[rule.index]->fused[variant][0][kFused8bit];
  if (first == Dtype::bfloat16) args.fused = table.rules[rule.index]->fused[variant][0][kFusedBfloat16];
  run(table, name, n, [&] { table.step->run[0](args, 0, n, telemetry ? sums.data() : nullptr); });
}

void steps(const KernelTable& table, std::int64_t n) {
  constexpr Dtype f32 = Dtype::float32, bf16 = Dtype::bfloat16;
  step(table, "step", n, f32, f32, f32, false);
  step(table, "step_telemetry", n, f32, f32, f32, true);
  step(table, "step_8bit", n, f32, Dtype::signed8, Dtype::unsigned8, false);
  step(table, "step_8bit_telemetry", n, f32, Dtype::signed8, Dtype::unsigned8, true);
  step(table, "step_bfloat16_states", n, f32, bf16, bf16, false);
  step(table, "step_bfloat16", n, bf16, f32, f32, false);
  const Array x(f32, n);
  StepArgs norm = {};
  norm.grad = x.as<void>();
  norm.grad_dtype = f32;
  std::vector<double> sums(std::size_t((n + kChunk - 1) / kChunk * kStepSums));
  run(table, "gradient_norm", n, [&] { table.step->gradient_sums[0](norm, 0, n, sums.data()); });
}

}  // namespace

int main(int argc, char** argv) {
  for (int k = 1; k < argc; ++k) {
    const KernelTable* found = runtime::find_table(argv[k]);
    if (found == nullptr) {
      std::fprintf(stderr, "%s is not an instruction set of this processor\n", argv[k]);
      return 2;
    }
    const KernelTable& table = *found;
    batch_norm(table, "16x2x56x56", Dtype::float32, 16, 2, 3136, false);
    batch_norm(table, "16x2x56x56_residual_relu", Dtype::float32, 16, 2, 3136, true);
    batch_norm(table, "16x2x56x56_bfloat16", Dtype::bfloat16, 16, 2, 3136, false);
    batch_norm(table, "64x8x7x7", Dtype::float32, 64, 8, 49, false);
    batch_norm(table, "128x8x4x4", Dtype::float32, 128, 8, 16, false);
    batch_norm(table, "2048x64", Dtype::float32, 2048, 64, 1, false);
    batch_norm(table, "256x1024", Dtype::float32, 256, 1024, 1, false);
    losses(table, 64, 1000);
    losses(table, 512, 128);
    elementwise(table, 65536);
    steps(table, 65536);
  }
  return 0;
}
