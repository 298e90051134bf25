#include "bind/step/geometry.h"

namespace fusedstep::bind {

py::tuple Geometry::lengths() const {
  py::tuple all{shape.size()};
  for (std::size_t i = 0; i < shape.size(); ++i) all[i] = shape[i];
  return all;
}

std::string Geometry::text() const { return "shape " + shown(lengths()) + " and " + dtype_name(dtype); }

Geometry geometry_of(py::handle owner, py::handle array, const Label& label) {
  const auto* a = py::detail::array_proxy(array.ptr());
  return {owner,
          inspect_stored(array, label).dtype,
          py::reinterpret_borrow<py::object>(a->descr),
          {a->dimensions, a->dimensions + a->nd},
          {a->strides, a->strides + a->nd}};
}

}  // namespace fusedstep::bind
