// Parts of the kernels that tests compare with their specification, for fusedstep._core.testing.
#include "bind/arguments.h"
#include "bind/backend.h"
#include "bind/module.h"
#include "bind/vectors/backend.h"

namespace fusedstep::bind {
namespace {

// The random words of whole groups.
py::array_t<std::uint32_t> philox_words(std::uint64_t key, std::uint64_t upper, std::uint64_t group,
                                        std::int64_t groups) {
  py::array_t<std::uint32_t> words(groups * 64);
  native_table().dropout->philox(key, upper, group, groups, words.mutable_data());
  return words;
}

// exp or log_1p of every number.
template <auto ArrayKernels::* function>
void map_floats(py::handle x, py::handle out) {
  const Array from = inspect_contiguous_float32(x, {"x"}, false);
  const Array to = inspect_contiguous_float32(out, {"out"}, true);
  require_same_shape(out, {"out"}, x, {"x"});
  (native_table().arrays->*function)(reinterpret_cast<const float*>(from.data), reinterpret_cast<float*>(to.data),
                                     from.size);
}

// Rounds float32 to an array of 16 bits, as a step and batch norm do.
void narrow(py::handle values, py::handle out) {
  const Array from = inspect_contiguous_float32(values, {"values"}, false), to = inspect_stored(out, {"out"});
  if (item_bytes(to.dtype) != 2) type_error({"out"}, "expected float16 or bfloat16, got dtype " + dtype_text(out));
  require_same_shape(out, {"out"}, values, {"values"});
  require_contiguous(out, {"out"});
  require_writable(out, {"out"});
  active_backends().vectors->narrow({plain(values), from}, {plain(out), to});
}

}  // namespace

void register_kernel_testing(py::module_& m) {
  m.def("philox_words", &philox_words, py::arg("key"), py::arg("upper"), py::arg("group"), py::arg("groups"));
  m.def("exponential", &map_floats<&ArrayKernels::exponential>, py::arg("x"), py::arg("out"));
  m.def("log_1p", &map_floats<&ArrayKernels::log_1p>, py::arg("x"), py::arg("out"));
  m.def("narrow", &narrow, py::arg("values"), py::arg("out"));
}

}  // namespace fusedstep::bind
