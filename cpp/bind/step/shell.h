// Where the tensors of a step lie, as NumPy arrays and numbers that cost nothing to make anew.
#pragma once

#include <cstdint>

#include "bind/memory.h"

namespace fusedstep::bind {

inline const char* start_of(const dlpack::Tensor& tensor) {
  return static_cast<const char*>(tensor.data) + tensor.byte_offset;
}

// A NumPy array made once and led, in every step, to where a tensor's memory is then. It holds nothing: between steps
// nobody looks at where it points.
class Shell {
 public:
  // Null where NumPy has no such dtype. `moved`: the memory is not where it was, or has never been seen.
  py::object lead(const dlpack::Tensor& tensor, bool& moved) {
    char* data = const_cast<char*>(start_of(tensor));
    if (array_ && Py_REFCNT(array_.ptr()) == 1 && fits(tensor, data)) {
      auto* array = py::detail::array_proxy(array_.ptr());
      moved = array->data != data || data == nullptr;
      array->data = data;
      return array_;
    }
    moved = true;
    array_ = {};
    const py::object descr = descr_of(tensor);
    if (!descr) return {};
    py::ssize_t shape[32], strides[32];
    py::ssize_t step = tensor.bits / 8;
    for (int i = tensor.ndim - 1; i >= 0; --i) {
      shape[i] = py::ssize_t(tensor.shape[i]);
      strides[i] = tensor.strides != nullptr ? py::ssize_t(tensor.strides[i]) * (tensor.bits / 8) : step;
      step *= shape[i];
    }
    auto& api = py::detail::npy_api::get();
    constexpr int flags = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    // NumPy would allocate memory where there is none.
    static char nothing[16];
    array_ = py::reinterpret_steal<py::object>(
        api.PyArray_NewFromDescr_(api.PyArray_Type_, py::object(descr).release().ptr(), tensor.ndim, shape, strides,
                                  data != nullptr ? data : nothing, flags, nullptr));
    if (!array_) throw py::error_already_set();
    code_ = tensor.code;
    bits_ = tensor.bits;
    return array_;
  }

 private:
  bool fits(const dlpack::Tensor& tensor, const char* data) const {
    const auto* array = py::detail::array_proxy(array_.ptr());
    const py::ssize_t item = bits_ / 8;
    if (tensor.code != code_ || tensor.bits != bits_ || tensor.lanes != 1 || tensor.ndim != array->nd) return false;
    if ((array->flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0 ||
        reinterpret_cast<std::uintptr_t>(data) % std::uintptr_t(item) != 0)
      return false;
    if (tensor.strides == nullptr) return false;
    for (int i = 0; i < tensor.ndim; ++i) {
      if (tensor.shape[i] != array->dimensions[i] || tensor.strides[i] * item != array->strides[i]) return false;
    }
    return true;
  }

  py::object array_;
  std::uint8_t code_ = 0, bits_ = 0;
};

// Those of a parameter.
struct Shells {
  Shell param, grad, ema, master;
  Shell state[kMaxStates], scales[kMaxStates];
};

// A number that a state keeps beside its arrays: in a tensor of one, or Python's.
struct Cell {
  py::object owner;
  float* single = nullptr;
  double* wide = nullptr;
  double value() const {
    return single != nullptr ? double(*single) : wide != nullptr ? *wide : PyFloat_AsDouble(owner.ptr());
  }
  void set(double value) const noexcept {
    if (single != nullptr) *single = float(value);
    if (wide != nullptr) *wide = value;
  }
  bool is_tensor() const { return single != nullptr || wide != nullptr; }
};

struct Cells {
  Cell step, scalars[kMaxScalars];
};

}  // namespace fusedstep::bind
