// The roofs that benches stand beside their figures.
#include "runtime/roofs.h"

#include <vector>

#include "bind/arrays.h"
#include "bind/backend.h"
#include "bind/module.h"

namespace fusedstep::bind {
namespace {

void roof_step(py::handle read, const py::list& read_write) {
  const Array source = inspect_contiguous_float32(read, {"read"}, false);
  const py::ssize_t arrays = py::ssize_t(py::len(read_write));
  if (arrays < 1 || arrays > 1 + kMaxStates) {
    value_error({"read_write"},
                "expected 1 to " + std::to_string(1 + kMaxStates) + " arrays, got " + std::to_string(arrays));
  }
  RoofArgs args = {reinterpret_cast<const float*>(source.data), {}};
  for (py::ssize_t k = 0; k < arrays; ++k) {
    const py::object object = read_write[std::size_t(k)];
    const Array array = inspect_contiguous_float32(object, {"read_write", k}, true);
    require_same_shape(object, {"read_write", k}, read, {"read"});
    args.read_write[k] = reinterpret_cast<float*>(array.data);
  }
  const KernelTable& table = native_table("roofs");
  const py::gil_scoped_release released;
  runtime::roof_step(table, args, int(arrays), source.size);
}

void roof_map(py::handle a, py::handle b, py::handle out) {
  const Array first = inspect_contiguous_float32(a, {"a"}, false);
  const Array target = inspect_contiguous_float32(out, {"out"}, true);
  require_same_shape(out, {"out"}, a, {"a"});
  const float* second = nullptr;
  if (!b.is_none()) {
    second = reinterpret_cast<const float*>(inspect_contiguous_float32(b, {"b"}, false).data);
    require_same_shape(b, {"b"}, a, {"a"});
  }
  const KernelTable& table = native_table("roofs");
  const py::gil_scoped_release released;
  runtime::roof_map(table, reinterpret_cast<const float*>(first.data), second, reinterpret_cast<float*>(target.data),
                    target.size);
}

}  // namespace

void register_roofs(py::module_& m) {
  m.def("roof_step", &roof_step);
  m.def("roof_map", &roof_map);
}

}  // namespace fusedstep::bind
