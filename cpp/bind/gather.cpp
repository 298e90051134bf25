// The rows of a batch.
#include "runtime/gather.h"

#include <vector>

#include "bind/arrays.h"
#include "bind/module.h"

namespace fusedstep::bind {
namespace {

// The bytes of a row, once the arrays are checked.
std::int64_t row_bytes_of(const py::array& source, const py::array& rows, const py::array& out) {
  const bool plain = !source.dtype().attr("hasobject").cast<bool>();
  if (!plain || rows.ndim() != 1 || source.ndim() < 1 || out.ndim() != source.ndim() || !is_contiguous(source) ||
      !is_contiguous(out) || !out.writeable() || !source.dtype().equal(out.dtype()) || out.shape(0) != rows.size()) {
    throw py::value_error("gather_rows: expected C-contiguous arrays of one plain dtype, as many rows as numbers");
  }
  std::int64_t bytes = source.itemsize();
  for (py::ssize_t k = 1; k < source.ndim(); ++k) {
    if (source.shape(k) != out.shape(k)) throw py::value_error("gather_rows: expected rows of one shape");
    bytes *= source.shape(k);
  }
  return bytes;
}

// out[k] = source[rows[k]] for arrays of any plain dtype.
void gather_rows(const py::array& source, const py::array_t<std::int64_t, py::array::c_style>& rows,
                 const py::array& out) {
  const std::int64_t row_bytes = row_bytes_of(source, rows, out);
  // Copied: what has been checked is what is used.
  const std::vector<std::int64_t> checked(rows.data(), rows.data() + rows.size());
  for (std::size_t k = 0; k < checked.size(); ++k) {
    if (checked[k] < 0 || checked[k] >= source.shape(0)) {
      throw py::index_error("rows[" + std::to_string(k) + "]: expected a number in [0, " +
                            std::to_string(source.shape(0)) + "), got " + std::to_string(checked[k]));
    }
  }
  const auto* from = static_cast<const char*>(source.data());
  auto* to = const_cast<char*>(static_cast<const char*>(out.data()));
  const py::gil_scoped_release released;
  runtime::gather_rows(from, checked.data(), to, std::int64_t(checked.size()), row_bytes);
}

}  // namespace

void register_gather(py::module_& m) {
  m.def("gather_rows", &gather_rows, py::arg("source"), py::arg("rows").noconvert(), py::arg("out"));
}

}  // namespace fusedstep::bind
