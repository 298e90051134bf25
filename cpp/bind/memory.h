// Memory that belongs to others: how it is seen, whether it is still there, and who is told that it was written.
#pragma once

#include <vector>

#include "bind/arrays.h"
#include "bind/dlpack.h"

namespace fusedstep::bind {

// A NumPy array of what an object holds now, without a copy: the object itself where it is one. TypeError where there
// is none. `foreign` is set where code of other libraries ran, which may have moved or freed any other memory.
py::object view(py::handle object, const Label& label, bool* foreign = nullptr);
// The same by the DLPack exchange table of the object's type, null where it has none. No Python code runs.
py::object view_by_table(py::handle object, const Label& label);
// What the table says of an object's memory; false where there is none, or it is not the CPU's.
bool read_by_table(py::handle object, dlpack::Tensor& tensor);
// NumPy's dtype for it, null where there is none.
py::object descr_of(const dlpack::Tensor& tensor);
bool is_torch_tensor(py::handle object);
// Whether a torch tensor's memory holds its numbers as they are: the table does not say. ValueError where its storage
// is smaller than its shape.
bool is_plain_tensor(py::handle object, const dlpack::Tensor& tensor, const Label& label);
// ValueError where the owner of a NumPy array's memory has moved, shrunk or freed it since the array was made.
void require_alive(py::handle array, const Label& label);
// Tells autograd that tensors were written: `objects` are tensors, or NumPy arrays of their memory.
void wrote(const std::vector<py::handle>& objects);
// The same of torch tensors, none of which was made in inference mode.
void wrote_tensors(const py::list& tensors);

}  // namespace fusedstep::bind
