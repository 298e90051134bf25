// Vectors by the NumPy reference.
#include "bind/vectors/backend.h"

namespace fusedstep::bind {
namespace {

template <class... Arguments>
py::object call(const char* function, Arguments&&... arguments) {
  return py::module_::import("fusedstep.reference.vectors").attr(function)(std::forward<Arguments>(arguments)...);
}

class NumpyVectors : public VectorBackend {
 public:
  double dot(const Vector& x, const Vector& y) const override { return call("dot", x.array, y.array).cast<double>(); }
  void axpy(double a, const Vector& x, const Vector& y) const override { call("axpy", a, x.array, y.array); }
  void narrow(const Vector& from, const Vector& to) const override { call("narrow", from.array, to.array); }
};

}  // namespace

std::unique_ptr<const VectorBackend> numpy_vectors() { return std::make_unique<NumpyVectors>(); }

}  // namespace fusedstep::bind
