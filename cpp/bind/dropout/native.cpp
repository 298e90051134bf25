// Dropout by the kernels of an instruction set.
#include "bind/dropout/backend.h"
#include "runtime/dropout.h"

namespace fusedstep::bind {
namespace {

class NativeDropout : public DropoutBackend {
 public:
  explicit NativeDropout(const KernelTable& table) : table_(table) {}

  void dropout(const DropoutWork& work) const override {
    DropoutArgs args = {};
    args.x = work.x.memory.data;
    args.y = work.y.memory.data;
    args.residual = work.residual.array ? work.residual.memory.data : nullptr;
    args.key = work.key;
    args.offset = work.offset;
    args.unit = work.unit;
    const py::gil_scoped_release released;
    runtime::dropout(table_, work.x.memory.dtype, args, work.p, work.x.memory.size);
  }

 private:
  const KernelTable& table_;
};

}  // namespace

std::unique_ptr<const DropoutBackend> native_dropout(const KernelTable& table) {
  return std::make_unique<NativeDropout>(table);
}

}  // namespace fusedstep::bind
