#include "bind/commit.h"

#include <cstring>

#include "bind/memory.h"
#include "bind/module.h"

namespace fusedstep::bind {
namespace {

const py::detail::PyArray_Proxy* proxy(py::handle array) { return py::detail::array_proxy(array.ptr()); }

// Copies along the axes from `axis` on.
void copy_items(const py::detail::PyArray_Proxy* to, const py::detail::PyArray_Proxy* from, int axis, char* out,
                const char* in, std::size_t item) noexcept {
  if (axis == to->nd) {
    std::memcpy(out, in, item);
    return;
  }
  for (py::ssize_t k = 0; k < to->dimensions[axis]; ++k) {
    copy_items(to, from, axis + 1, out + k * to->strides[axis], in + k * from->strides[axis], item);
  }
}

}  // namespace

Ledger::~Ledger() {
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
    // An error may be on its way up: it stays set.
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    const int failed = entry->before != nullptr ? PyDict_SetItem(entry->dict.ptr(), entry->key.ptr(), entry->before)
                                                : PyDict_DelItem(entry->dict.ptr(), entry->key.ptr());
    if (failed != 0) PyErr_Clear();
    PyErr_Restore(type, value, trace);
  }
}

void Ledger::put(py::handle dict, py::handle key, py::handle value) {
  PyObject* before = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (before == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
  Py_XINCREF(before);
  entries_.emplace_back(py::reinterpret_borrow<py::object>(dict), py::reinterpret_borrow<py::object>(key), before);
  if (PyDict_SetItem(dict.ptr(), key.ptr(), value.ptr()) != 0) {
    py::error_already_set error;
    entries_.pop_back();
    throw error;
  }
}

void Writes::add(py::handle target, py::handle value, const Label& label) {
  const auto descr = [](py::handle array) { return py::reinterpret_borrow<py::dtype>(proxy(array)->descr); };
  for (const py::handle array : {target, value}) {
    if (!is_array(array)) type_error(label, "expected NumPy arrays, got " + kind_text(array));
    if (descr(array).attr("hasobject").cast<bool>()) type_error(label, "expected numbers, got objects");
    require_alive(array, label);
  }
  const py::ssize_t item = descr(target).itemsize();
  // Names of dtypes are compared last: that is Python code, in which an interrupt may come.
  const bool same = descr(target).equal(descr(value));
  if (!same && (dtype_text(target) != dtype_text(value) || descr(value).itemsize() != item)) {
    type_error(label, "expected dtype " + dtype_text(target) + ", got " + dtype_text(value));
  }
  require_same_shape(value, label, target, {"the array"});
  require_writable(target, label);
  const bool dense = same_layout(target, value) && is_dense(target) && is_dense(value);
  copies_.push_back(
      {py::reinterpret_borrow<py::object>(target), py::reinterpret_borrow<py::object>(value), item, dense});
}

void Writes::run() const noexcept {
  for (const Copy& copy : copies_) {
    const auto *to = proxy(copy.target), *from = proxy(copy.value);
    if (!copy.dense) {
      copy_items(to, from, 0, to->data, from->data, std::size_t(copy.item));
      continue;
    }
    std::size_t bytes = std::size_t(copy.item);
    for (int i = 0; i < to->nd; ++i) bytes *= std::size_t(to->dimensions[i]);
    if (bytes > 0) std::memcpy(to->data, from->data, bytes);
  }
}

void register_commit(py::module_& m) {
  // Pairs (array, values) and entries (dict, key, value): all of them, or none where anything is raised.
  m.def(
      "commit",
      [](const py::list& pairs, const py::list& entries) {
        Writes writes;
        for (const py::handle pair : pairs) {
          const auto both = py::reinterpret_borrow<py::tuple>(pair);
          writes.add(both[0], both[1]);
        }
        Ledger ledger;
        for (const py::handle entry : entries) {
          const auto parts = py::reinterpret_borrow<py::tuple>(entry);
          ledger.put(parts[0], parts[1], parts[2]);
        }
        writes.run();
        ledger.keep();
      },
      py::arg("pairs"), py::arg("entries") = py::list());
}

}  // namespace fusedstep::bind
