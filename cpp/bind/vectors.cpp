// Products and sums of whole vectors, for L-BFGS.
#include "runtime/vectors.h"

#include "bind/arrays.h"
#include "bind/module.h"
#include "bind/overlap.h"
#include "runtime/isa.h"

namespace fusedstep::bind {
namespace {

// The reference computes these too, for a set that has no table.
py::object reference() { return py::module_::import("fusedstep.reference.vectors"); }

void check_pair(py::handle x, py::handle y, bool written) {
  inspect(x, {"x"});
  inspect(y, {"y"});
  require_same_dtype(x, {"x"}, y, {"y"});
  require_same_shape(x, {"x"}, y, {"y"});
  for (const auto& [array, label] : {std::pair(x, Label{"x"}), std::pair(y, Label{"y"})}) {
    if (axes_of(array) != 1 || !is_contiguous(array)) value_error(label, "expected a contiguous array of one axis");
  }
  if (written) require_writable(y, {"y"});
}

double dot(py::handle x, py::handle y) {
  check_pair(x, y, false);
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) return reference().attr("dot")(plain(x), plain(y)).cast<double>();
  const Array a = inspect(x, {"x"}), b = inspect(y, {"y"});
  const py::gil_scoped_release released;
  return runtime::dot(*table, a.dtype, a.data, b.data, a.size);
}

void axpy(double a, py::handle x, py::handle y) {
  check_pair(x, y, true);
  const Array from = inspect(x, {"x"}), to = inspect(y, {"y"});
  if (overlap(from, to) && from.data != to.data) value_error({"x"}, "overlaps y in memory");
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    reference().attr("axpy")(a, plain(x), plain(y));
    return;
  }
  const py::gil_scoped_release released;
  runtime::axpy(*table, from.dtype, a, from.data, to.data, from.size);
}

// Rounds float32 into an array of 16 bits, as a step and batch norm do.
void narrow(py::handle values, py::handle out) {
  const Array from = inspect_contiguous_float32(values, {"values"}, false), to = inspect_stored(out, {"out"});
  if (item_bytes(to.dtype) != 2) type_error({"out"}, "expected float16 or bfloat16, got dtype " + dtype_text(out));
  require_same_shape(out, {"out"}, values, {"values"});
  require_contiguous(out, {"out"});
  require_writable(out, {"out"});
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    plain(out)[py::ellipsis()] =
        py::module_::import("fusedstep.reference.codec").attr("narrowed")(plain(values), descr_of(out));
    return;
  }
  const py::gil_scoped_release released;
  table->arrays->narrow[to.dtype == Dtype::bfloat16](reinterpret_cast<const float*>(from.data), to.data, from.size);
}

}  // namespace

void register_vectors(py::module_& m) {
  m.def("dot", &dot);
  m.def("axpy", &axpy);
  m.def("narrow", &narrow);
}

}  // namespace fusedstep::bind
