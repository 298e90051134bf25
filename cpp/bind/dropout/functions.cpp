// Dropout of elements, or of whole samples.
#include "bind/arguments.h"
#include "bind/backend.h"
#include "bind/dropout/backend.h"
#include "bind/module.h"
#include "runtime/dropout.h"

namespace fusedstep::bind {
namespace {

double probability(py::handle given) {
  const double p = number(given, "p");
  if (!(p >= 0.0 && runtime::dropped_words(p) < 0x1p32)) {
    value_error({"p"}, "expected a number in [0, 1), to 32 bits, got " + shown(given));
  }
  return p;
}

std::uint64_t word64(py::handle given, const char* name) {
  const py::int_ value = integer(given, name);
  const std::uint64_t word = PyLong_AsUnsignedLongLong(value.ptr());
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    value_error({name}, "expected an integer in [0, 2^64), got " + shown(value));
  }
  return word;
}

// y = residual + dropout(x): of elements, or of whole samples, which the first axis counts. `name` is that of x.
py::object dropout(const py::object& x, py::handle p, py::handle seed, py::handle offset, const py::object& residual,
                   const py::object& out, const char* name, bool samples) {
  DropoutWork work = {};
  work.p = probability(p);
  work.key = word64(seed, "seed");
  work.offset = word64(offset, "offset");

  work.x = read(x, {name});
  const std::int64_t size = work.x.memory.size;
  if (samples && axes_of(work.x.given) < 1) value_error({name}, "expected at least one axis, got a number");
  const std::int64_t choices = samples ? shape_of(work.x.given)[0] : size;
  work.unit = samples && choices > 0 ? size / choices : 1;
  if (work.offset + std::uint64_t(choices) < work.offset) {
    value_error({"offset"}, std::string("expected offset and ") + (samples ? "samples" : "elements") +
                                " below 2^64, got " + shown(offset));
  }
  if (!residual.is_none()) work.residual = read_like(residual, {"residual"}, work.x, {name});
  work.y = make_result(out, work.x, name);
  refuse_overlap(work.y, work.x, name, true);
  // The sum may be written over the residual, as over x.
  if (work.residual.array) refuse_overlap(work.y, work.residual, "residual", true);
  if (size > 0) active_backends().dropout->dropout(work);
  return work.y.out;
}

}  // namespace

void register_dropout(py::module_& m) {
  using py::arg;
  m.def("dropout", &dropout, arg("x"), arg("p"), arg("seed"), arg("offset"), arg("residual"), arg("out"), arg("name"),
        arg("samples"));
}

}  // namespace fusedstep::bind
