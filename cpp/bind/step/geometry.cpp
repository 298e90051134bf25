#include "bind/step/geometry.h"

#include <algorithm>

namespace fusedstep::bind {

py::tuple Geometry::lengths() const {
  py::tuple all{shape.size()};
  for (std::size_t i = 0; i < shape.size(); ++i) all[i] = shape[i];
  return all;
}

std::string Geometry::text() const { return "shape " + shown(lengths()) + " and " + dtype_name(dtype); }

void Geometry::require_same(py::handle array, const Label& label) const {
  const auto* a = py::detail::array_proxy(array.ptr());
  const bool shaped = std::equal(shape.begin(), shape.end(), a->dimensions, a->dimensions + a->nd);
  if (shaped && a->descr == descr.ptr()) return;
  if (inspect_stored(array, label).dtype == dtype && shaped) return;
  value_error(label, "is of shape " + shape_text(array) + " and " + dtype_text(array) + ", and was of " + text() +
                         " when it was given; opt.rebind(params) takes it as it is now");
}

bool Geometry::same_strides(py::handle array) const {
  const auto* a = py::detail::array_proxy(array.ptr());
  return std::equal(strides.begin(), strides.end(), a->strides, a->strides + a->nd);
}

Geometry geometry_of(py::handle owner, py::handle array, const Label& label) {
  const auto* a = py::detail::array_proxy(array.ptr());
  return {owner,
          inspect_stored(array, label).dtype,
          py::reinterpret_borrow<py::object>(a->descr),
          {a->dimensions, a->dimensions + a->nd},
          {a->strides, a->strides + a->nd}};
}

}  // namespace fusedstep::bind
