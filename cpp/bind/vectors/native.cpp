// Vectors by the kernels of an instruction set.
#include "bind/vectors/backend.h"
#include "runtime/vectors.h"

namespace fusedstep::bind {
namespace {

class NativeVectors : public VectorBackend {
 public:
  explicit NativeVectors(const KernelTable& table) : table_(table) {}

  double dot(const Vector& x, const Vector& y) const override {
    const py::gil_scoped_release released;
    return runtime::dot(table_, x.memory.dtype, x.memory.data, y.memory.data, x.memory.size);
  }

  void axpy(double a, const Vector& x, const Vector& y) const override {
    const py::gil_scoped_release released;
    runtime::axpy(table_, x.memory.dtype, a, x.memory.data, y.memory.data, x.memory.size);
  }

  void narrow(const Vector& from, const Vector& to) const override {
    const py::gil_scoped_release released;
    table_.arrays->narrow[to.memory.dtype == Dtype::bfloat16](reinterpret_cast<const float*>(from.memory.data),
                                                              to.memory.data, from.memory.size);
  }

 private:
  const KernelTable& table_;
};

}  // namespace

std::unique_ptr<const VectorBackend> native_vectors(const KernelTable& table) {
  return std::make_unique<NativeVectors>(table);
}

}  // namespace fusedstep::bind
