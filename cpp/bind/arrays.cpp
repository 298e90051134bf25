#include "bind/arrays.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace fusedstep::bind {
namespace {

const py::detail::PyArray_Proxy* proxy(py::handle array) { return py::detail::array_proxy(array.ptr()); }

std::int64_t count(const py::detail::PyArray_Proxy* a) {
  std::int64_t size = 1;
  for (int i = 0; i < a->nd; ++i) size *= a->dimensions[i];
  return size;
}

const py::detail::PyArrayDescr2_Proxy* description(py::handle descr) {
  return py::detail::array_descriptor2_proxy(descr.ptr());
}

// A name in the dict of a module that has been imported, or is being imported; null where there is none.
py::handle module_entry(const char* module, const char* name) {
  PyObject* modules = PyImport_GetModuleDict();
  PyObject* found = PyDict_CheckExact(modules) ? PyDict_GetItemString(modules, module) : nullptr;
  return found != nullptr && PyModule_Check(found) ? PyDict_GetItemString(PyModule_GetDict(found), name) : nullptr;
}

// ml_dtypes' bfloat16, or our mark: exactly {"fusedstep": "bfloat16"}, on 16-bit words. ml_dtypes is not imported for
// this: an array of it is there only if it has been. No code of others runs.
bool is_bfloat16(py::handle descr) {
  const auto* d = description(descr);
  if (d->elsize != 2 || d->byteorder != '=') return false;
  if (d->type_num == py::detail::npy_api::NPY_USHORT_) {
    static const py::handle key = PyUnicode_InternFromString("fusedstep");
    if (d->metadata == nullptr || !PyDict_Check(d->metadata) || PyDict_Size(d->metadata) != 1) return false;
    PyObject* mark = PyDict_GetItemWithError(d->metadata, key.ptr());
    PyErr_Clear();
    return mark != nullptr && PyUnicode_CheckExact(mark) && PyUnicode_CompareWithASCIIString(mark, "bfloat16") == 0;
  }
  // Dtypes that other libraries registered have numbers from 256 on.
  if (d->type_num < 256) return false;
  static py::handle type;
  if (!type) {
    const py::handle found = module_entry("ml_dtypes", "bfloat16");
    if (!found || !PyType_Check(found.ptr()) || found.ptr() != d->typeobj) return false;
    type = found;
    type.inc_ref();
  }
  return type.ptr() == d->typeobj;
}

constexpr int kContiguous = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_F_CONTIGUOUS_;

}  // namespace

bool is_masked(py::handle object) {
  // The type is asked for the attribute, not the object: a property would run.
  static const py::handle mask = PyUnicode_InternFromString("mask");
  return Py_TYPE(object.ptr()) != array_type() && _PyType_Lookup(Py_TYPE(object.ptr()), mask.ptr()) != nullptr;
}

py::object plain(py::handle object) {
  if (!is_array(object) || Py_TYPE(object.ptr()) == array_type()) return py::reinterpret_borrow<py::object>(object);
  auto view = py::reinterpret_steal<py::object>(py::detail::npy_api::get().PyArray_FromAny_(
      object.ptr(), nullptr, 0, 0, py::detail::npy_api::NPY_ARRAY_ENSUREARRAY_, nullptr));
  if (!view) throw py::error_already_set();
  return view;
}

namespace {

std::string tuple_text(const py::ssize_t* numbers, int count) {
  std::string text = "(";
  for (int i = 0; i < count; ++i) text += (i > 0 ? ", " : "") + std::to_string(numbers[i]);
  return text + (count == 1 ? ",)" : ")");
}

}  // namespace

std::string shape_text(py::handle array) { return tuple_text(proxy(array)->dimensions, proxy(array)->nd); }
std::string strides_text(py::handle array) { return tuple_text(proxy(array)->strides, proxy(array)->nd); }
std::string dtype_text(py::handle array) {
  const auto* a = proxy(array);
  return is_bfloat16(a->descr) ? "bfloat16" : std::string(py::str(py::handle(a->descr)));
}

namespace {

// Finds the dtype of a description; false where it is none of those allowed.
bool find_dtype(py::handle descr, bool narrow, bool codes, Dtype& dtype) {
  struct Known {
    py::handle descr;
    Dtype dtype;
  };
  static const Known known[] = {{py::dtype::of<float>().release(), Dtype::float32},
                                {py::dtype::of<double>().release(), Dtype::float64},
                                {py::dtype("float16").release(), Dtype::float16}};
  const int count = narrow ? 3 : 2;
  for (int k = 0; k < count; ++k) {
    if (descr.is(known[k].descr)) return dtype = known[k].dtype, true;
  }
  for (int k = 0; k < count; ++k) {
    if (descr.equal(known[k].descr)) return dtype = known[k].dtype, true;
  }
  if (codes && descr.equal(py::dtype::of<std::uint8_t>())) return dtype = Dtype::unsigned8, true;
  if (!narrow || !is_bfloat16(descr)) return false;
  return dtype = Dtype::bfloat16, true;
}

Array inspect_dtypes(py::handle object, const Label& label, bool narrow, bool codes = false) {
  if (Py_TYPE(object.ptr()) != array_type()) {
    if (!is_array(object)) type_error(label, "expected a NumPy array, got " + kind_text(object));
    if (is_masked(object)) type_error(label, "expected a plain NumPy array, got " + kind_text(object));
  }
  const auto* a = proxy(object);
  Dtype dtype;
  if (!find_dtype(a->descr, narrow, codes, dtype)) {
    const std::string got = dtype_text(object);
    type_error(label,
               std::string("expected ") +
                   (codes    ? "float32, float64, float16, bfloat16 or uint8"
                    : narrow ? "float32, float64, float16 or bfloat16"
                             : "float32 or float64") +
                   " in native byte order, got dtype " + got +
                   (narrow && got == "uint16" ? " (words of bfloat16 say so: words.view(fusedstep.bfloat16))" : ""));
  }
  if ((a->flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0) {
    value_error(label, "expected an array aligned to its items");
  }
  const std::int64_t size = count(a);
  return {a->data, size, size * item_bytes(dtype), dtype};
}

}  // namespace

Array inspect(py::handle object, const Label& label) { return inspect_dtypes(object, label, false); }
Array inspect_stored(py::handle object, const Label& label) { return inspect_dtypes(object, label, true); }
Array inspect_coded(py::handle object, const Label& label) { return inspect_dtypes(object, label, true, true); }

bool is_dense(py::handle array) {
  const auto* a = proxy(array);
  if ((a->flags & kContiguous) != 0 || count(a) == 0) return true;
  std::vector<std::pair<py::ssize_t, py::ssize_t>> axes;  // stride, length
  for (int i = 0; i < a->nd; ++i) {
    if (a->dimensions[i] != 1) axes.push_back({a->strides[i], a->dimensions[i]});
  }
  std::sort(axes.begin(), axes.end());
  py::ssize_t expected = py::reinterpret_borrow<py::dtype>(a->descr).itemsize();
  for (const auto& [stride, length] : axes) {
    if (stride != expected) return false;
    expected *= length;
  }
  return true;
}

void require_dense(py::handle array, const Label& label) {
  if (is_dense(array)) return;
  value_error(label, "expected one dense block of memory, got shape " + shape_text(array) + " with strides " +
                         strides_text(array));
}

void require_writable(py::handle array, const Label& label) {
  if ((proxy(array)->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) == 0) {
    value_error(label, "expected a writable array, got a read-only one");
  }
}

void require_same_dtype(py::handle array, const Label& label, py::handle other, const Label& other_label) {
  const py::handle a = proxy(array)->descr, b = proxy(other)->descr;
  if (a.is(b) || (is_bfloat16(a) == is_bfloat16(b) && (is_bfloat16(a) || a.equal(b)))) return;
  type_error(label,
             "expected dtype " + dtype_text(other) + " as " + other_label.text() + " has, got " + dtype_text(array));
}

void require_same_shape(py::handle array, const Label& label, py::handle other, const Label& other_label) {
  const auto *a = proxy(array), *b = proxy(other);
  if (a->nd == b->nd && std::equal(a->dimensions, a->dimensions + a->nd, b->dimensions)) return;
  value_error(label,
              "expected shape " + shape_text(other) + " as " + other_label.text() + " has, got " + shape_text(array));
}

bool same_layout(py::handle first, py::handle second) {
  const auto *a = proxy(first), *b = proxy(second);
  const auto item = [](const auto* array) { return py::reinterpret_borrow<py::dtype>(array->descr).itemsize(); };
  const py::ssize_t a_item = a->descr == b->descr ? 1 : item(a), b_item = a->descr == b->descr ? 1 : item(b);
  for (int i = 0; i < a->nd; ++i) {
    if (a->strides[i] * b_item != b->strides[i] * a_item && a->dimensions[i] != 1) return count(a) == 0;
  }
  return true;
}

void require_rows(py::handle rows, py::handle values, py::handle param, const Label& label) {
  const auto refuse = [&](const char* what) { value_error(label, std::string("its coalesced form: ") + what); };
  if (!is_array(rows) || !py::reinterpret_borrow<py::dtype>(proxy(rows)->descr).equal(py::dtype::of<std::int64_t>()) ||
      proxy(rows)->nd != 1 || !is_contiguous(rows)) {
    refuse("expected rows as a contiguous int64 array of one axis");
  }
  const auto *v = proxy(values), *p = proxy(param);
  if (!is_contiguous(values) || v->nd != p->nd || v->nd == 0 || v->dimensions[0] != proxy(rows)->dimensions[0] ||
      !std::equal(v->dimensions + 1, v->dimensions + v->nd, p->dimensions + 1)) {
    refuse("expected contiguous values, as many rows of the parameter");
  }
  const auto* row = reinterpret_cast<const std::int64_t*>(proxy(rows)->data);
  std::int64_t least = 0;
  for (py::ssize_t k = 0; k < proxy(rows)->dimensions[0]; ++k) {
    if (row[k] < least || row[k] >= p->dimensions[0]) refuse("expected rows of the parameter, in rising order");
    least = row[k] + 1;
  }
}

int axes_of(py::handle array) { return proxy(array)->nd; }

std::vector<std::int64_t> shape_of(py::handle array) {
  const auto* a = proxy(array);
  return {a->dimensions, a->dimensions + a->nd};
}

std::vector<std::int64_t> strides_of(py::handle array) {
  const auto* a = proxy(array);
  return {a->strides, a->strides + a->nd};
}

py::handle descr_of(py::handle array) { return proxy(array)->descr; }

void* data_of(py::handle array) { return proxy(array)->data; }
bool has_base(py::handle array) { return proxy(array)->base != nullptr; }

char kind_of(py::handle array) {
  return is_bfloat16(proxy(array)->descr) ? 'f' : description(proxy(array)->descr)->kind;
}

py::object in_c_order(py::handle array) {
  if (is_contiguous(array)) return py::reinterpret_borrow<py::object>(array);
  auto copy = py::reinterpret_steal<py::object>(py::detail::npy_api::get().PyArray_NewCopy_(array.ptr(), 0));
  if (!copy) throw py::error_already_set();
  return copy;
}

bool is_contiguous(py::handle array) {
  return (proxy(array)->flags & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_) != 0;
}

py::tuple reduced_shape(py::handle array, Shape shape) {
  const auto* a = proxy(array);
  py::tuple lengths{std::size_t(a->nd)};
  const int reduced = shape == Shape::rows ? a->nd - 1 : a->nd - 2;
  for (int i = 0; i < a->nd; ++i) lengths[std::size_t(i)] = i == reduced ? 1 : a->dimensions[i];
  return lengths;
}

py::object array_like(py::handle array, const char* how) {
  static const py::handle numpy = py::module_::import("numpy").release();
  // A subclass may redefine the function; a plain view does not.
  return numpy.attr(how)(plain(array), py::arg("subok") = false);
}

py::object array_like(py::handle array, const char* how, py::handle dtype) {
  static const py::handle numpy = py::module_::import("numpy").release();
  return numpy.attr(how)(plain(array), dtype, py::arg("subok") = false);
}

const char* dtype_name(Dtype dtype) {
  const char* const names[] = {"float32", "float64", "float16", "bfloat16", "uint8", "uint8"};
  return names[int(dtype)];
}

py::object numpy_dtype(Dtype dtype) {
  if (dtype != Dtype::bfloat16) return py::dtype(dtype_name(dtype));
  return py::module_::import("fusedstep._common.arrays").attr("bfloat16_dtype")();
}

void copy_values(py::handle from, py::handle to) {
  plain(to)[py::ellipsis()] = py::module_::import("fusedstep.reference.codec").attr("widened")(plain(from));
}

Array span_of(py::handle array) {
  const std::int64_t size = count(proxy(array));
  return {proxy(array)->data, size, size * description(proxy(array)->descr)->elsize, Dtype::unsigned8};
}

void require_contiguous(py::handle array, const Label& label) {
  if (is_contiguous(array)) return;
  value_error(label,
              "expected a C-contiguous array, got shape " + shape_text(array) + " with strides " + strides_text(array));
}

Array inspect_contiguous_float32(py::handle object, const Label& label, bool written) {
  const Array array = inspect(object, label);
  if (array.dtype != Dtype::float32) type_error(label, "expected float32, got dtype " + dtype_text(object));
  require_contiguous(object, label);
  if (written) require_writable(object, label);
  return array;
}

ChannelView channel_view(py::handle array, int channel_axis) {
  const auto* a = proxy(array);
  ChannelView view = {1, a->dimensions[channel_axis], 1};
  for (int i = 0; i < a->nd; ++i) {
    if (i == channel_axis || a->dimensions[i] == 1) continue;
    const bool outer = a->dimensions[channel_axis] == 1 || a->strides[i] > a->strides[channel_axis];
    (outer ? view.n : view.l) *= a->dimensions[i];
  }
  return view;
}

}  // namespace fusedstep::bind
