// Memory that belongs to others: how it is seen, whether it is still there, and who is told that it was written.
#pragma once

#include <vector>

#include "bind/arrays.h"

namespace fusedstep::bind {

// A NumPy array of what an object holds now, without a copy: the object itself where it is one. TypeError where there
// is none. `foreign` is set where code of other libraries ran, which may have moved or freed any other memory.
py::object view(py::handle object, const Label& label, bool* foreign = nullptr);
// The same by the DLPack exchange table of the object's type, null where it has none. No Python code runs.
py::object view_by_table(py::handle object, const Label& label);
// ValueError where the owner of a NumPy array's memory has moved, shrunk or freed it since the array was made.
void require_alive(py::handle array, const Label& label);
// Tells autograd that tensors were written: `objects` are tensors, or NumPy arrays of their memory.
void wrote(const std::vector<py::handle>& objects);

}  // namespace fusedstep::bind
