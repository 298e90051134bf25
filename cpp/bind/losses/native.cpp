// Losses by the kernels of an instruction set.
#include "bind/losses/backend.h"
#include "runtime/losses.h"

namespace fusedstep::bind {
namespace {

// The losses of rows in the dtype of the result.
void store(const std::vector<double>& losses, Dtype dtype, char* out) {
  for (std::size_t row = 0; row < losses.size(); ++row) {
    if (dtype == Dtype::float64) {
      reinterpret_cast<double*>(out)[row] = losses[row];
    } else {
      reinterpret_cast<float*>(out)[row] = float(losses[row]);
    }
  }
}

class NativeLosses : public LossBackend {
 public:
  explicit NativeLosses(const KernelTable& table) : table_(table) {}

  double mean_divisor(const CrossEntropyWork& work) const override {
    return runtime::mean_divisor(work.labels.data(), work.rows.rows, work.ignore,
                                 work.weights.empty() ? nullptr : work.weights.data());
  }

  double cross_entropy(const CrossEntropyWork& work, const Loss& loss) const override {
    std::vector<double> losses(static_cast<std::size_t>(work.rows.rows));
    CrossEntropyArgs args = {};
    args.rows = work.rows.rows;
    args.classes = work.rows.classes;
    args.logits = work.logits.memory.data;
    args.labels = work.with_labels ? work.labels.data() : nullptr;
    args.targets = work.with_labels ? nullptr : work.targets.memory.data;
    args.weight = work.weight.array ? work.weight.memory.data : nullptr;
    args.ignore = work.ignore;
    args.dlogits = work.gradient.memory.data;
    args.losses = losses.data();
    args.scale = loss.scale();
    const Dtype dtype = work.logits.memory.dtype;
    {
      const py::gil_scoped_release released;
      runtime::cross_entropy(table_, dtype, args, work.smoothing);
    }
    if (loss.data() != nullptr) {
      store(losses, maths_dtype(dtype), loss.data());
      return 0.0;
    }
    return table_.arrays->sum(losses.data(), std::int64_t(losses.size()));
  }

  double elementwise(const ElementwiseWork& work, const Loss& loss) const override {
    const Array& x = work.x.memory;
    const ElementwiseLossArgs args = {
        x.data, work.targets.memory.data, work.gradient.memory.data, loss.data(), work.weight, loss.scale()};
    const py::gil_scoped_release released;
    return runtime::elementwise_loss(table_, x.dtype, work.loss, args, x.size);
  }

  void softmax(const Input& logits, const Result& out, bool log) const override {
    const Rows seen = rows_of(logits);
    const SoftmaxArgs args = {seen.rows, seen.classes, logits.memory.data, out.memory.data, false};
    const py::gil_scoped_release released;
    runtime::softmax(table_, logits.memory.dtype, log, args);
  }

 private:
  const KernelTable& table_;
};

}  // namespace

std::unique_ptr<const LossBackend> native_losses(const KernelTable& table) {
  return std::make_unique<NativeLosses>(table);
}

}  // namespace fusedstep::bind
