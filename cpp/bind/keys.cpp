#include "bind/keys.h"

namespace fusedstep::bind {

void find_all(py::handle dict, const std::vector<py::object>& keys, py::handle* values) {
  const std::size_t count = keys.size();
  for (std::size_t k = 0; k < count; ++k) values[k] = {};
  std::size_t next = 0;
  bool met_all = true;
  py::ssize_t place = 0;
  PyObject *key, *value;
  while (PyDict_Next(dict.ptr(), &place, &key, &value) != 0) {
    std::size_t k = next;
    while (k < count && keys[k].ptr() != key) ++k;
    if (k < count) {
      values[k] = value;
      next = k + 1;
    } else {
      met_all = false;
    }
  }
  for (std::size_t k = 0; !met_all && k < count; ++k) {
    if (!values[k]) values[k] = get(dict, keys[k]);
  }
}

}  // namespace fusedstep::bind
