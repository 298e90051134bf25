// Products and sums of whole vectors, for L-BFGS.
#include "bind/arguments.h"
#include "bind/backend.h"
#include "bind/module.h"
#include "bind/overlap.h"
#include "bind/vectors/backend.h"

namespace fusedstep::bind {
namespace {

struct Pair {
  Vector x, y;
};

Pair inspect_pair(py::handle x, py::handle y) {
  const Pair pair = {{plain(x), inspect(x, {"x"})}, {plain(y), inspect(y, {"y"})}};
  require_same_dtype(x, {"x"}, y, {"y"});
  require_same_shape(x, {"x"}, y, {"y"});
  for (const auto& [array, label] : {std::pair(x, Label{"x"}), std::pair(y, Label{"y"})}) {
    if (axes_of(array) != 1 || !is_contiguous(array)) value_error(label, "expected a contiguous array of one axis");
  }
  return pair;
}

double dot(py::handle x, py::handle y) {
  const Pair pair = inspect_pair(x, y);
  return active_backends().vectors->dot(pair.x, pair.y);
}

void axpy(double a, py::handle x, py::handle y) {
  const Pair pair = inspect_pair(x, y);
  require_writable(y, {"y"});
  const Array &from = pair.x.memory, &to = pair.y.memory;
  if (overlap(from, to) && from.data != to.data) value_error({"x"}, "overlaps y in memory");
  active_backends().vectors->axpy(a, pair.x, pair.y);
}

}  // namespace

void register_vectors(py::module_& m) {
  m.def("dot", &dot, py::arg("x"), py::arg("y"));
  m.def("axpy", &axpy, py::arg("a"), py::arg("x"), py::arg("y"));
}

}  // namespace fusedstep::bind
