#include "bind/memory.h"

#include <algorithm>
#include <unordered_map>

#include "bind/dlpack.h"
#include "bind/module.h"

namespace fusedstep::bind {
namespace {

// [begin, end) of memory.
struct Extent {
  const char* begin = nullptr;
  const char* end = nullptr;
  bool holds(const Extent& other) const {
    return other.begin == other.end || (begin <= other.begin && other.end <= end);
  }
};

Extent extent_of(const char* data, int axes, const py::ssize_t* shape, const py::ssize_t* strides,
                 py::ssize_t item_bytes) {
  Extent extent = {data, data + item_bytes};
  for (int i = 0; i < axes; ++i) {
    if (shape[i] == 0) return {data, data};
    (strides[i] < 0 ? extent.begin : extent.end) += (shape[i] - 1) * strides[i];
  }
  return extent;
}

Extent extent_of(py::handle array) {
  const auto* a = py::detail::array_proxy(array.ptr());
  const auto descr = py::reinterpret_borrow<py::dtype>(a->descr);
  return extent_of(a->data, a->nd, a->dimensions, a->strides, descr.itemsize());
}

// The type of PyTorch's tensors, null as long as nobody has imported it.
PyTypeObject* tensor_type() {
  static PyTypeObject* known = nullptr;
  if (known != nullptr) return known;
  static const py::handle name = PyUnicode_InternFromString("torch");
  const py::handle torch = PyDict_GetItem(PyImport_GetModuleDict(), name.ptr());
  if (!torch || !py::hasattr(torch, "Tensor") || !py::hasattr(torch, "autograd")) return nullptr;
  const py::object type = torch.attr("Tensor");
  if (PyType_Check(type.ptr())) known = reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
  return known;
}

py::object call(py::handle object, const char* method) {
  auto result = py::reinterpret_steal<py::object>(PyObject_CallMethod(object.ptr(), method, nullptr));
  if (!result) throw py::error_already_set();
  return result;
}

// What a tensor's storage holds now: a tensor keeps its shape when its storage shrinks.
Extent storage_of(py::handle tensor) {
  static const py::handle storage_name = PyUnicode_InternFromString("untyped_storage");
  static const py::handle data_name = PyUnicode_InternFromString("data_ptr");
  static const py::handle bytes_name = PyUnicode_InternFromString("nbytes");
  const auto ask = [](py::handle object, py::handle name) {
    auto result = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), name.ptr()));
    if (!result) throw py::error_already_set();
    return result;
  };
  const py::object storage = ask(tensor, storage_name);
  const auto* begin = static_cast<const char*>(PyLong_AsVoidPtr(ask(storage, data_name).ptr()));
  const py::ssize_t bytes = PyLong_AsSsize_t(ask(storage, bytes_name).ptr());
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return {begin, begin + bytes};
}

bool is_parameter_type(PyTypeObject* type) {
  if (tensor_type() == nullptr || type->tp_base != tensor_type()) return false;
  const py::handle nn = PyDict_GetItemString(PyImport_GetModuleDict(), "torch.nn");
  if (!nn || !py::hasattr(nn, "Parameter")) return false;
  const py::object parameter = nn.attr("Parameter");
  return parameter.ptr() == reinterpret_cast<PyObject*>(type);
}

// The exchange table of a type, null where it has none. An inherited table does not count, for a subclass may hold its
// numbers elsewhere; PyTorch's own parameters are the exception.
const dlpack::ExchangeApi* find_table(PyTypeObject* type) {
  static const py::handle name = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  auto* object = reinterpret_cast<PyObject*>(type);
  const bool own = type->tp_dict != nullptr && PyDict_GetItem(type->tp_dict, name.ptr()) != nullptr;
  if (!own && type != tensor_type() && !is_parameter_type(type)) return nullptr;
  const auto capsule = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name.ptr()));
  const void* pointer = capsule ? PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule) : nullptr;
  PyErr_Clear();
  const auto* table = static_cast<const dlpack::ExchangeApi*>(pointer);
  while (table != nullptr && table->major != dlpack::kMajor) table = table->previous;
  return table != nullptr && table->tensor_from_object != nullptr ? table : nullptr;
}

const dlpack::ExchangeApi* table_of(py::handle object) {
  // Types are held, so that no other one takes their place. Never destroyed: Python may be gone by then.
  static auto* known = new std::unordered_map<PyTypeObject*, const dlpack::ExchangeApi*>;
  static PyTypeObject* last = nullptr;
  static const dlpack::ExchangeApi* its = nullptr;
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type == last) return its;
  const auto found = known->find(type);
  if (found != known->end()) {
    last = type;
    return its = found->second;
  }
  const dlpack::ExchangeApi* table = find_table(type);
  // Not kept: PyTorch may be in the middle of its import, and have a table later.
  if (table == nullptr) return nullptr;
  Py_INCREF(type);
  return (*known)[type] = table;
}

constexpr int kMostAxes = 32;

}  // namespace

py::object descr_of(const dlpack::Tensor& tensor) {
  static const py::handle bfloat16 = numpy_dtype(Dtype::bfloat16).release();
  const auto held = [](const char* name) { return py::dtype(name).release(); };
  static const py::handle floats[] = {held("float16"), held("float32"), held("float64")};
  static const py::handle ints[] = {held("int8"), held("int16"), held("int32"), held("int64")};
  static const py::handle words[] = {held("uint8"), held("uint16"), held("uint32"), held("uint64")};
  const int place = tensor.bits == 8 ? 0 : tensor.bits == 16 ? 1 : tensor.bits == 32 ? 2 : tensor.bits == 64 ? 3 : -1;
  if (tensor.lanes != 1 || place < 0) return {};
  py::handle found;
  if (tensor.code == dlpack::kFloat && place > 0) found = floats[place - 1];
  if (tensor.code == dlpack::kInt) found = ints[place];
  if (tensor.code == dlpack::kUInt) found = words[place];
  if (tensor.code == dlpack::kBfloat && place == 1) found = bfloat16;
  return py::reinterpret_borrow<py::object>(found);
}

bool is_torch_tensor(py::handle object) {
  PyTypeObject* type = tensor_type();
  return type != nullptr && PyObject_TypeCheck(object.ptr(), type);
}

bool read_by_table(py::handle object, dlpack::Tensor& tensor) {
  const dlpack::ExchangeApi* table = table_of(object);
  if (table == nullptr) return false;
  if (table->tensor_from_object(object.ptr(), &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  return tensor.device_type == dlpack::kCpu && tensor.ndim <= kMostAxes;
}

bool is_plain_tensor(py::handle object, const dlpack::Tensor& tensor, const Label& label) {
  // PyTorch has not negated these numbers yet: their memory holds the opposite sign.
  static const py::handle is_neg = PyUnicode_InternFromString("is_neg");
  const auto negated = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), is_neg.ptr()));
  if (!negated) throw py::error_already_set();
  if (negated.is(py::handle(Py_True))) return false;
  py::ssize_t strides[kMostAxes];
  const py::ssize_t item_bytes = tensor.bits / 8;
  for (int i = 0; i < tensor.ndim; ++i) strides[i] = tensor.strides[i] * item_bytes;
  const char* data = static_cast<const char*>(tensor.data) + tensor.byte_offset;
  if (!storage_of(object).holds(extent_of(data, tensor.ndim, tensor.shape, strides, item_bytes))) {
    value_error(label, "its storage is smaller than its shape: it was resized or freed");
  }
  return true;
}

py::object view_by_table(py::handle object, const Label& label) {
  dlpack::Tensor tensor = {};
  if (!read_by_table(object, tensor)) return {};
  const py::object descr = descr_of(tensor);
  if (!descr) return {};
  const py::ssize_t item_bytes = tensor.bits / 8;
  py::ssize_t shape[kMostAxes], strides[kMostAxes];
  py::ssize_t step = item_bytes;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    shape[i] = tensor.shape[i];
    strides[i] = tensor.strides != nullptr ? tensor.strides[i] * item_bytes : step;
    step *= shape[i];
  }
  char* data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  const Extent extent = extent_of(data, tensor.ndim, shape, strides, item_bytes);
  if (is_torch_tensor(object)) {
    if (!is_plain_tensor(object, tensor, label)) return {};
  } else if (data == nullptr && extent.begin != extent.end) {
    value_error(label, "it has no memory");
  }
  auto& api = py::detail::npy_api::get();
  constexpr int flags = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  auto made = py::reinterpret_steal<py::object>(api.PyArray_NewFromDescr_(
      api.PyArray_Type_, py::object(descr).release().ptr(), tensor.ndim, shape, strides, data, flags, nullptr));
  if (!made) throw py::error_already_set();
  api.PyArray_SetBaseObject_(made.ptr(), object.inc_ref().ptr());
  return made;
}

namespace {

// The memory that an object, no NumPy array, holds now; false where it cannot be asked.
bool extent_of_owner(py::handle owner, Extent& extent, const Label& label) {
  if (is_torch_tensor(owner)) {
    extent = storage_of(owner);
    return true;
  }
  if (!PyObject_CheckBuffer(owner.ptr())) return false;
  Py_buffer buffer;
  if (PyObject_GetBuffer(owner.ptr(), &buffer, PyBUF_FULL_RO) != 0) {
    const py::error_already_set error;
    value_error(label, "its memory is gone: " + std::string(py::str(error.value())));
  }
  const bool dense = PyBuffer_IsContiguous(&buffer, 'A') != 0;
  const auto* begin = static_cast<const char*>(buffer.buf);
  extent = {begin, begin + buffer.len};
  PyBuffer_Release(&buffer);
  return dense;
}

// The object that owns the memory of a NumPy array; null where NumPy does.
py::handle owner_of(py::handle array) {
  py::handle owner = py::detail::array_proxy(array.ptr())->base;
  while (owner && is_array(owner)) owner = py::detail::array_proxy(owner.ptr())->base;
  return owner;
}

}  // namespace

py::object view(py::handle object, const Label& label, bool* foreign) {
  if (is_array(object)) return py::reinterpret_borrow<py::object>(object);
  if (py::object made = view_by_table(object, label)) return made;
  static const py::handle arrays = py::module_::import("fusedstep._common.arrays").release();
  if (foreign != nullptr) *foreign = true;
  return arrays.attr("foreign_array")(object, label.text());
}

void require_alive(py::handle array, const Label& label) {
  const auto* a = py::detail::array_proxy(array.ptr());
  if ((a->flags & py::detail::npy_api::NPY_ARRAY_OWNDATA_) != 0 || a->base == nullptr) return;
  const Extent extent = extent_of(array);
  Extent held;
  py::handle owner = a->base;
  while (owner && is_array(owner)) {
    const auto* base = py::detail::array_proxy(owner.ptr());
    if ((base->flags & py::detail::npy_api::NPY_ARRAY_OWNDATA_) != 0) {
      held = extent_of(owner);
      break;
    }
    owner = base->base;
  }
  if (!owner || (!is_array(owner) && !extent_of_owner(owner, held, label))) return;
  if (held.holds(extent)) return;
  value_error(label, "its memory was moved or freed by its owner (" + kind_text(owner) + ")");
}

void wrote(const std::vector<py::handle>& objects) {
  PyTypeObject* type = tensor_type();
  if (type == nullptr) return;
  py::list tensors;
  for (const py::handle object : objects) {
    const py::handle owner = is_array(object) ? owner_of(object) : object;
    if (owner && PyObject_TypeCheck(owner.ptr(), type) && !call(owner, "is_inference").cast<bool>()) {
      tensors.append(owner);
    }
  }
  if (!tensors.empty()) wrote_tensors(tensors);
}

void wrote_tensors(const py::list& tensors) {
  // The native function behind torch.autograd.graph.increment_version, where there is one: between the write and this
  // call no line of Python runs, in which an interrupt could come.
  static const py::handle increment = [] {
    const py::object native = py::module_::import("torch").attr("_C");
    if (py::hasattr(native, "_increment_version"))
      return native.attr("_increment_version").cast<py::object>().release();
    return py::module_::import("torch.autograd.graph").attr("increment_version").cast<py::object>().release();
  }();
  increment(tensors);
}

void register_memory(py::module_& m) {
  m.def("view", [](py::handle object, const std::string& name) { return view(object, {name.c_str()}); });
  m.def("require_alive", [](py::handle array, const std::string& name) { require_alive(array, {name.c_str()}); });
  m.def("wrote", [](const py::list& objects) { wrote({objects.begin(), objects.end()}); });
}

}  // namespace fusedstep::bind
