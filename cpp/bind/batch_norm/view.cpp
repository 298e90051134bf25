#include "bind/batch_norm/view.h"

#include "bind/arguments.h"

namespace fusedstep::bind {

AxisLayout axis_layout(py::handle array) {
  AxisLayout axes = {shape_of(array), strides_of(array)};
  for (std::size_t k = 0; k < axes.shape.size(); ++k) {
    if (axes.shape[k] == 1) axes.strides[k] = 0;
  }
  return axes;
}

py::object memory_of(const py::object& given, const char* name) {
  if (is_array(given) || !(py::hasattr(given, "__array__") || py::hasattr(given, "__dlpack__"))) return given;
  static const py::handle arrays = py::module_::import("fusedstep._common.arrays").release();
  return arrays.attr("as_array")(given, name);
}

py::ssize_t axis_number(py::handle given) {
  if (PyBool_Check(given.ptr()) || !PyIndex_Check(given.ptr())) {
    type_error({"channel_axis"}, "expected an integer, got " + kind_text(given));
  }
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(given.ptr()));
  const py::ssize_t number = index ? PyLong_AsSsize_t(index.ptr()) : -1;
  if (number == -1 && PyErr_Occurred() != nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) throw py::error_already_set();
    PyErr_Clear();
    if (index) value_error({"channel_axis"}, "expected an axis of x, got " + shown(given));
    type_error({"channel_axis"}, "expected an integer, got " + shown(given));
  }
  return number;
}

BatchView view_batch(const py::object& given, py::ssize_t axis_given) {
  const py::object seen = memory_of(given, "x");
  const Array memory = inspect_stored(seen, {"x"});
  const py::object x = plain(seen);
  const int axes = axes_of(x);
  if (axes < 2) {
    value_error({"x"},
                "expected a batch and a channel axis, such as (N, C) or (N, C, H, W), got shape " + shape_text(x));
  }
  require_dense(x, {"x"});
  if (axis_given < -axes || axis_given >= axes) {
    value_error({"channel_axis"},
                "expected an axis of x, which has " + std::to_string(axes) + ", got " + std::to_string(axis_given));
  }
  const int axis = int(axis_given < 0 ? axis_given + axes : axis_given);
  ChannelView view = channel_view(x, axis);
  if (view.c == 0) value_error({"x"}, "expected at least one channel, got shape " + shape_text(x));
  // One channel is one run of values.
  if (view.c == 1) view = {view.n * view.l > 0, 1, view.n * view.l};
  const Layout layout = view.l == 1 && view.c > 1 ? kRows : kPlanes;
  return {given, x, axis, memory, layout, view.n, view.c, view.l, axis_layout(x)};
}

void require_values(const BatchView& x) {
  if (x.empty()) value_error({"x"}, "expected at least one value, got shape " + shape_text(x.array));
}

}  // namespace fusedstep::bind
