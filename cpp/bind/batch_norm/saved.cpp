#include "bind/batch_norm/saved.h"

#include <cstring>

#include "bind/module.h"

namespace fusedstep::bind {

std::int64_t BatchNormSaved::words_of_mask(const BatchView& x) {
  return 1 + (x.layout == kRows ? fusedstep::mask_words(x.n * x.c) : x.n * x.c * fusedstep::mask_words(x.l));
}

void BatchNormSaved::make_mask() {
  mask_words = words_of_mask(x);
  mask.reset(new std::uint16_t[std::size_t(mask_words)]);
  mask[mask_words - 1] = 0;
}

py::object BatchNormSaved::mask_array() const {
  if (mask == nullptr) return py::none();
  return py::array_t<std::uint16_t>(mask_words, mask.get(), py::none());
}

std::uint64_t fingerprint(const Array& array) {
  // FNV-1a of 64 bits, over items at even distances.
  constexpr std::int64_t places = 256;
  const std::int64_t item = item_bytes(array.dtype), step = array.size <= places ? 1 : (array.size / places) | 1;
  std::uint64_t hash = 1469598103934665603u;
  for (std::int64_t k = 0; k < array.size; k += step) {
    std::uint64_t word = 0;
    std::memcpy(&word, array.data + k * item, std::size_t(item));
    hash = (hash ^ word) * 1099511628211u;
  }
  return hash;
}

namespace {

// A view of an object's memory that keeps the object alive. It is read-only, for the backward pass needs the values.
template <class T>
py::object read_only(const py::object& owner, const T* data, std::size_t count) {
  py::array_t<T> array(py::ssize_t(count), data, owner);
  py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

py::object mean_of(const py::object& self) {
  const auto& saved = self.cast<const BatchNormSaved&>();
  return read_only(self, saved.mean.data(), saved.mean.size());
}

py::object inv_std_of(const py::object& self) {
  const auto& saved = self.cast<const BatchNormSaved&>();
  return read_only(self, saved.inv_std.data(), saved.inv_std.size());
}

py::object mask_of(const py::object& self) {
  const auto& saved = self.cast<const BatchNormSaved&>();
  if (saved.mask == nullptr) return py::none();
  return read_only(self, saved.mask.get(), std::size_t(saved.mask_words));
}

}  // namespace

void register_batch_norm_saved(py::module_& m) {
  using Saved = BatchNormSaved;
  py::class_<Saved>(m, "BatchNormSaved",
                    "What `batch_norm_backward` needs of the forward pass. `x` is the caller's array, not a copy.",
                    py::is_final(), whole_from_birth())
      .def_property_readonly(
          "x", [](const Saved& s) { return s.x.given; }, "The array that was normalized, as it was given.")
      .def_property_readonly("mean", &mean_of, "(C,) float64, the mean that was used; read-only.")
      .def_property_readonly("inv_std", &inv_std_of, "(C,) float64, 1 / √(var + eps); read-only.")
      .def_property_readonly("mask", &mask_of,
                             "Bits of what relu let pass, and a word of zeros; read-only. None without activation.")
      .def_property_readonly(
          "count", [](const Saved& s) { return std::int64_t(s.count); }, "Values per channel behind the statistics.")
      .def_property_readonly(
          "training", [](const Saved& s) { return s.training; }, "Whether the statistics were the batch's.");
}

}  // namespace fusedstep::bind
