#include "bind/inputs.h"

#include "bind/arguments.h"
#include "bind/overlap.h"

namespace fusedstep::bind {

Input read(py::handle object, const Label& label) {
  Input input = {plain(object), {}, inspect_stored(object, label)};
  input.array = in_c_order(input.given);
  if (input.copied()) input.memory = inspect_stored(input.array, label);
  return input;
}

Input read_like(py::handle object, const Label& label, const Input& other, const Label& other_label) {
  inspect_stored(object, label);
  require_same_dtype(object, label, other.given, other_label);
  require_same_shape(object, label, other.given, other_label);
  return read(object, label);
}

Result make_result(const py::object& out, const Input& like, const char* name) {
  if (out.is_none()) {
    const py::object made = array_like(like.array, "empty_like");
    return {made, made, inspect_stored(made, {"out"})};
  }
  const Result result = {out, plain(out), inspect_stored(out, {"out"})};
  require_same_dtype(out, {"out"}, like.given, {name});
  require_same_shape(out, {"out"}, like.given, {name});
  require_contiguous(out, {"out"});
  require_writable(out, {"out"});
  return result;
}

void refuse_overlap(const Result& result, const Input& input, const char* name, bool may_be_in_place) {
  const bool in_place = !input.copied() && result.memory.data == input.memory.data;
  if ((may_be_in_place && in_place) || !share_memory(result.array, input.given)) return;
  value_error({"out"}, std::string("overlaps ") + name + (may_be_in_place ? " (it may be the same array)" : ""));
}

py::int_ integer(py::handle given, const char* name) {
  if (!PyBool_Check(given.ptr())) {
    PyObject* index = PyNumber_Index(given.ptr());
    if (index != nullptr) return py::reinterpret_steal<py::int_>(index);
    if (!PyErr_ExceptionMatches(PyExc_Exception)) throw py::error_already_set();
    PyErr_Clear();
  }
  type_error({name}, "expected an integer, got " + kind_text(given));
}

}  // namespace fusedstep::bind
