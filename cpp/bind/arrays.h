// What an argument must be before a pointer into it is taken.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "bind/arguments.h"
#include "kernels/abi/table.h"

namespace fusedstep::bind {

struct Array {
  char* data;
  std::int64_t size;
  std::int64_t bytes;
  Dtype dtype;
};

// What an array is and where it lies is read from NumPy's own structure: attributes are code of whoever made the
// subclass, and may lie, or move other arrays. Nothing below runs such code.
inline PyTypeObject* array_type() {
  static PyTypeObject* const type = py::detail::npy_api::get().PyArray_Type_;
  return type;
}
inline bool is_array(py::handle object) {
  return Py_TYPE(object.ptr()) == array_type() || PyType_IsSubtype(Py_TYPE(object.ptr()), array_type()) != 0;
}
bool is_masked(py::handle object);
// The array, or a view of it without its subclass; other objects as they are.
py::object plain(py::handle object);
std::string shape_text(py::handle array);
std::string strides_text(py::handle array);
std::string dtype_text(py::handle array);
// An aligned float32 or float64 array in the processor's byte order. TypeError, ValueError.
Array inspect(py::handle object, const Label& label);
// As inspect, or of float16 or bfloat16.
Array inspect_stored(py::handle object, const Label& label);
// As inspect_stored, or of uint8, the codes of states: Dtype::unsigned8 whatever the codes stand for.
Array inspect_coded(py::handle object, const Label& label);
// One block of memory, whatever the order of the axes.
bool is_dense(py::handle array);
void require_dense(py::handle array, const Label& label);
void require_writable(py::handle array, const Label& label);
void require_same_dtype(py::handle array, const Label& label, py::handle other, const Label& other_label);
void require_same_shape(py::handle array, const Label& label, py::handle other, const Label& other_label);
// Whether two arrays of the same shape lay out their elements in the same order.
bool same_layout(py::handle a, py::handle b);

// ValueError unless `rows` are int64 numbers of rows of `param`, rising, and `values` has the shape of so many rows.
void require_rows(py::handle rows, py::handle values, py::handle param, const Label& label);

int axes_of(py::handle array);
std::vector<std::int64_t> shape_of(py::handle array);
std::vector<std::int64_t> strides_of(py::handle array);
py::handle descr_of(py::handle array);
void* data_of(py::handle array);
// Whether its memory is another object's.
bool has_base(py::handle array);
// Bytes that the elements take, from the first to the last where the array is dense.
Array span_of(py::handle array);
// NumPy's letter for the kind of number; 'f' for bfloat16 too.
char kind_of(py::handle array);
// A plain array, or a copy of it in C order.
py::object in_c_order(py::handle array);
bool is_contiguous(py::handle array);
// The array's shape with one column (Shape::rows), or with one row (Shape::columns).
py::tuple reduced_shape(py::handle array, Shape shape);

// What numpy.empty_like or numpy.zeros_like gives: the layout of `array`, without its subclass.
py::object array_like(py::handle array, const char* how);
py::object array_like(py::handle array, const char* how, py::handle dtype);

const char* dtype_name(Dtype dtype);
py::object numpy_dtype(Dtype dtype);
// Copies a stored array, widened, into one of float32 or float64 and the same shape.
void copy_values(py::handle from, py::handle to);

void require_contiguous(py::handle array, const Label& label);
Array inspect_contiguous_float32(py::handle object, const Label& label, bool written);

// A dense array in the order of its memory as (n, c, l): the axes outside of the channel axis, that axis, those inside.
struct ChannelView {
  std::int64_t n, c, l;
};
ChannelView channel_view(py::handle array, int channel_axis);

}  // namespace fusedstep::bind
