// A step by the kernels of an instruction set.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "bind/step/backend.h"
#include "bind/step/reference.h"

namespace fusedstep::bind {
namespace {

class NativeStep : public StepBackend {
 public:
  explicit NativeStep(const KernelTable& table) : table_(table) {}

  void measure_gradients(const runtime::Rule&, StepWork& work) const override {
    {
      const py::gil_scoped_release released;
      work.step.sum(table_.step->gradient_sums, work.sums, runtime::Reads::gradient);
    }
    work.exponents.clear();
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      if (is_lost(work, k, 1)) put(work, k, reference_squares((*work.items)[k], work.sums[k * kStepSums]));
    }
  }

  void prepare(const runtime::Rule& rule, StepWork& work) const override {
    set_options(work);
    set_coefficients(rule, work);
    set_loops(rule, work);
    settle_coefficients(rule, work);
    if (!work.telemetry()) return;
    work.step.reserve(work.sums);
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      py::object before;
      if (work.tensors[k].dtype == Dtype::float64) {
        before = array_like((*work.items)[k].param, "empty_like");
        copy_values((*work.items)[k].param, before);
      }
      work.before.push_back(before);
    }
  }

  void write(StepWork& work) const override {
    const py::gil_scoped_release released;
    if (work.telemetry()) {
      work.step.sum(table_.step->run, work.sums);
    } else {
      work.step.run(table_.step->run);
    }
  }

  void measure(const runtime::Rule& rule, StepWork& work) const override {
    work.exponents.clear();
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      if (!is_lost(work, k, kStepSums)) continue;
      put(work, k, reference_telemetry(rule, (*work.items)[k], work.before[k], &work.sums[k * kStepSums]));
    }
    work.measured = true;
  }

  runtime::GradientNorm gradient_norm(const StepWork& work) const override {
    std::vector<runtime::Ranged> squares;
    std::vector<double> nonfinite;
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      squares.push_back(work.sum(k, kGradSquares));
      nonfinite.push_back(work.sum(k, kNonFinite).value);
    }
    return runtime::gradient_norm(squares, nonfinite, work.grad_scale);
  }

  double clip_coefficient(double max_norm, const runtime::GradientNorm& gradient, double grad_scale) const override {
    return runtime::clip_coefficient(max_norm, gradient, grad_scale);
  }

  runtime::StepTelemetry telemetry(const std::vector<runtime::TensorSums>& tensors, double grad_scale) const override {
    return runtime::telemetry_of(tensors, grad_scale);
  }

 private:
  // Whether one of a tensor's first `count` sums, of doubles, went out of range: then the reference takes it anew,
  // which is the same for all sets.
  static bool is_lost(const StepWork& work, std::size_t k, int count) {
    const double* sums = &work.sums[k * kStepSums];
    bool lost = false;
    for (int s = 0; s < count; ++s) lost = lost || (s != kNonFinite && !runtime::in_range(sums[s]));
    return lost && work.tensors[k].dtype == Dtype::float64 && work.tensors[k].size > 0;
  }

  static void put(StepWork& work, std::size_t k, const std::vector<runtime::Ranged>& sums) {
    work.exponents.resize(work.sums.size(), 0);
    for (std::size_t s = 0; s < sums.size(); ++s) {
      work.sums[k * kStepSums + s] = sums[s].value;
      work.exponents[k * kStepSums + s] = sums[s].exponent;
    }
  }

  static void set_options(StepWork& work) {
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      const Item& item = (*work.items)[k];
      const Settings& settings = work.settings(item);
      StepArgs& args = work.tensors[k].args;
      args.grad_factor = runtime::gradient_factor(settings.maximize, work.grad_scale, work.clip_coefficient);
      args.decay = settings.coupled_decay;
      args.ema_decay = runtime::ema_decay(settings.ema_decay, settings.ema_warmup, item.step);
    }
  }

  static bool shares_coefficients(const runtime::Rule& rule, const Item& a, const Item& b, Dtype a_dtype,
                                  Dtype b_dtype) {
    return a.group == b.group && a.step == b.step && a.first == b.first && a_dtype == b_dtype &&
           std::equal(a.scalars, a.scalars + rule.scalars.size(), b.scalars);
  }

  // Computed once for neighbours that have the same.
  static void set_coefficients(const runtime::Rule& rule, StepWork& work) {
    std::vector<Item>& items = *work.items;
    const std::size_t bytes = items.size() * kMaxCoefficientBytes;
    if (work.coefficients.size() < bytes) work.coefficients.resize(bytes);
    for (std::size_t k = 0; k < items.size(); ++k) {
      Item& item = items[k];
      runtime::StepTensor& tensor = work.tensors[k];
      unsigned char* out = work.coefficients.data() + k * kMaxCoefficientBytes;
      tensor.args.coefficients = out;
      if (k > 0 && shares_coefficients(rule, item, items[k - 1], tensor.dtype, work.tensors[k - 1].dtype)) {
        std::copy(items[k - 1].advanced, items[k - 1].advanced + kMaxScalars, item.advanced);
        // What settles from a tensor's own sums is not shared.
        if (rule.sums == 0) {
          tensor.args.coefficients = work.tensors[k - 1].args.coefficients;
        } else {
          std::memcpy(out, out - kMaxCoefficientBytes, kMaxCoefficientBytes);
        }
        continue;
      }
      std::copy(item.scalars, item.scalars + kMaxScalars, item.advanced);
      rule.coefficients(work.settings(item).hypers, {item.step, item.first}, tensor.dtype,
                        rule.shared_scalars ? work.shared : item.advanced, out);
    }
  }

  void set_loops(const runtime::Rule& rule, StepWork& work) const {
    const RuleKernels& loops = *table_.rules[rule.index];
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      const Item& item = (*work.items)[k];
      const bool cautious = work.settings(item).cautious;
      const int dtype = int(work.tensors[k].dtype);
      StepArgs& args = work.tensors[k].args;
      args.update = loops.update[dtype][item.variant][cautious];
      args.telemetry = loops.telemetry[dtype][item.variant][cautious];
      args.measure = loops.measure[dtype][item.variant][cautious];
      args.measures = cautious ? 1 : rule.sums;
      const int way = fused_way(rule, item, args);
      args.fused = way < 0 ? nullptr : loops.fused[item.variant][cautious][way];
    }
  }

  // How all states are stored that may be narrow; -1: not all in one of the ways that loops are made for.
  static int fused_way(const runtime::Rule& rule, const Item& item, const StepArgs& args) {
    int way = -1, kept = 0;
    for (int s = 0; s < int(rule.states.size()); ++s) {
      if (!keeps(rule, item, s)) continue;
      const Dtype stored = args.state_dtype[kept++];
      if (rule.exact >> s & 1) continue;
      const int its = is_code(stored) ? kFused8bit : stored == Dtype::bfloat16 ? kFusedBfloat16 : -1;
      if (its < 0 || (way >= 0 && its != way)) return -1;
      way = its;
    }
    return way;
  }

  // The sums that a rule, or a cautious mask, needs before the update, and the coefficients that follow from them.
  void settle_coefficients(const runtime::Rule& rule, StepWork& work) const {
    const bool needed = std::any_of(work.tensors.begin(), work.tensors.end(),
                                    [](const runtime::StepTensor& tensor) { return tensor.args.measures > 0; });
    if (!needed) return;
    {
      const py::gil_scoped_release released;
      work.step.sum(table_.step->measure_sums, work.sums);
    }
    add_up_measures(rule, work);
    double totals[kMaxMeasures] = {};
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      const Item& item = (*work.items)[k];
      const Settings& settings = work.settings(item);
      double* sums = &work.sums[k * kStepSums];
      if (rule.norms && work.peers == nullptr) take_roots(rule, work, k);
      if (settings.cautious) work.tensors[k].args.scale = double(work.whole_size(k)) / (sums[0] + 1.0);
      if (!rule.shared_scalars) continue;
      rule.weigh(settings.hypers, {item.step, item.first}, work.shared, sums);
      for (int s = 0; s < rule.sums; ++s) totals[s] += sums[s];
    }
    if (rule.shared_scalars) rule.share((*work.groups)[0].hypers, totals, work.shared);
    if (rule.sums == 0) return;
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      rule.settle(work.settings((*work.items)[k]).hypers, work.tensors[k].dtype, &work.sums[k * kStepSums], work.shared,
                  work.coefficients.data() + k * kMaxCoefficientBytes);
    }
  }

  // The sums over all parts; norms, where the rule takes those.
  static void add_up_measures(const runtime::Rule& rule, StepWork& work) {
    if (work.peers == nullptr) return;
    work.exponents.assign(work.sums.size(), 0);
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      if (rule.norms && is_lost(work, k, rule.sums)) put(work, k, reference_measures(rule, work, k));
    }
    work.add_up(kMaxMeasures);
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      for (int s = 0; s < kMaxMeasures; ++s) {
        const runtime::Ranged sum = work.sum(k, s);
        work.sums[k * kStepSums + std::size_t(s)] =
            rule.norms ? runtime::root_of(sum) : std::ldexp(sum.value, sum.exponent);
      }
    }
  }

  // Norms of the sums of squares.
  static void take_roots(const runtime::Rule& rule, StepWork& work, std::size_t k) {
    double* sums = &work.sums[k * kStepSums];
    if (work.tensors[k].dtype == Dtype::float64 && !std::all_of(sums, sums + rule.sums, runtime::in_range)) {
      const std::vector<double> norms = reference_norms(rule, work, k);
      std::copy(norms.begin(), norms.end(), sums);
      return;
    }
    for (int s = 0; s < rule.sums; ++s) sums[s] = std::sqrt(sums[s]);
  }

  const KernelTable& table_;
};

}  // namespace

std::unique_ptr<const StepBackend> native_step(const KernelTable& table) {
  return std::make_unique<const NativeStep>(table);
}

}  // namespace fusedstep::bind
