// Losses by the NumPy reference.
#include "bind/losses/backend.h"

namespace fusedstep::bind {
namespace {

template <class... Arguments>
py::object call(const char* function, Arguments&&... arguments) {
  return py::module_::import("fusedstep.reference.losses").attr(function)(std::forward<Arguments>(arguments)...);
}

py::object labels_or_none(const CrossEntropyWork& work) {
  if (!work.with_labels) return py::none();
  return py::array_t<std::int64_t>(work.rows.rows, work.labels.data());
}

class NumpyLosses : public LossBackend {
 public:
  double mean_divisor(const CrossEntropyWork& work) const override {
    return call("mean_divisor", labels_or_none(work), work.ignore, array_or_none(work.weight)).cast<double>();
  }

  double cross_entropy(const CrossEntropyWork& work, const Loss& loss) const override {
    return call("cross_entropy", work.logits.array, labels_or_none(work), work.ignore, array_or_none(work.targets),
                array_or_none(work.weight), work.smoothing, loss.scale(), loss.array(), work.gradient.array)
        .cast<double>();
  }

  double elementwise(const ElementwiseWork& work, const Loss& loss) const override {
    const char* function = work.loss == ElementwiseLoss::binary ? "binary_cross_entropy" : "squared_error";
    return call(function, work.x.array, work.targets.array, work.weight, loss.scale(), loss.array(),
                work.gradient.array)
        .cast<double>();
  }

  void softmax(const Input& logits, const Result& out, bool log) const override {
    call("softmax", logits.array, out.array, log);
  }
};

}  // namespace

std::unique_ptr<const LossBackend> numpy_losses() { return std::make_unique<NumpyLosses>(); }

}  // namespace fusedstep::bind
