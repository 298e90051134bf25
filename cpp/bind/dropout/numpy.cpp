// Dropout by the NumPy reference.
#include "bind/dropout/backend.h"

namespace fusedstep::bind {
namespace {

class NumpyDropout : public DropoutBackend {
 public:
  void dropout(const DropoutWork& work) const override {
    py::module_::import("fusedstep.reference.dropout")
        .attr("dropout")(work.x.array, array_or_none(work.residual), work.y.array, work.key, work.offset, work.unit,
                         work.p);
  }
};

}  // namespace

std::unique_ptr<const DropoutBackend> numpy_dropout() { return std::make_unique<NumpyDropout>(); }

}  // namespace fusedstep::bind
