// What an argument must be before a pointer into it is taken.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "bind/arguments.h"
#include "kernels/table.h"

namespace fusedstep::bind {

struct Array {
  char* data;
  std::int64_t size;
  std::int64_t bytes;
  Dtype dtype;
};

// What an array is and where it lies is read from NumPy's own structure: attributes are code of whoever made the
// subclass, and may lie, or move other arrays. Nothing below runs such code.
bool is_array(py::handle object);
bool is_masked(py::handle object);
// The array, or a view of it without its subclass; other objects as they are.
py::object plain(py::handle object);
std::string shape_text(py::handle array);
std::string strides_text(py::handle array);
std::string dtype_text(py::handle array);
// An aligned float32 or float64 array in the processor's byte order. TypeError, ValueError.
Array inspect(py::handle object, const Label& label);
// The same, or of 16 bits.
Array inspect_stored(py::handle object, const Label& label);
// The same, or of codes of 8 bits, which it calls unsigned.
Array inspect_coded(py::handle object, const Label& label);
// One block of memory, whatever the order of the axes.
bool is_dense(py::handle array);
void require_dense(py::handle array, const Label& label);
void require_writable(py::handle array, const Label& label);
void require_same_dtype(py::handle array, const Label& label, py::handle other, const Label& other_label);
void require_same_shape(py::handle array, const Label& label, py::handle other, const Label& other_label);
// Same shape assumed: do both put each element in the same place among their items?
bool same_layout(py::handle a, py::handle b);

// Rows of `param` in rising order, once each, and what they hold: int64, and the shape of so many rows.
void require_rows(py::handle rows, py::handle values, py::handle param, const Label& label);

int axes_of(py::handle array);
std::vector<std::int64_t> shape_of(py::handle array);
std::vector<std::int64_t> strides_of(py::handle array);
py::handle descr_of(py::handle array);
void* data_of(py::handle array);
// Bytes that the elements take, from the first to the last where the array is dense.
Array span_of(py::handle array);
// NumPy's letter; 'f' for bfloat16 too.
char kind_of(py::handle array);
// A plain array, or a copy of it in C order.
py::object in_c_order(py::handle array);
bool is_contiguous(py::handle array);
// The shape with one column, or with one row.
py::tuple reduced_shape(py::handle array, Shape shape);

// numpy.empty_like or numpy.zeros_like: the layout of `array`, and never its subclass.
py::object array_like(py::handle array, const char* how);
py::object array_like(py::handle array, const char* how, py::handle dtype);

const char* dtype_name(Dtype dtype);
py::object numpy_dtype(Dtype dtype);
// The numbers of a stored array into one of float32 or float64 and the same shape.
void copy_values(py::handle from, py::handle to);

void require_contiguous(py::handle array, const Label& label);
Array inspect_contiguous_float32(py::handle object, const Label& label, bool written);

// A dense array in the order of its memory: what is outside of the channel axis, that axis, what is inside.
struct ChannelView {
  std::int64_t n, c, l;
};
ChannelView channel_view(py::handle array, int channel_axis);

}  // namespace fusedstep::bind
