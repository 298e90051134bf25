// Arrays of any strides that a function reads, and the array in C order that it writes.
#pragma once

#include "bind/arrays.h"

namespace fusedstep::bind {

// What a call reads: as it was given but for its subclass, and in C order, copied where it lies otherwise.
struct Input {
  py::object given, array;
  Array memory;
  bool copied() const { return !given.is(array); }
};
Input read(py::handle object, const Label& label);
// An array of the dtype and the shape of `other`.
Input read_like(py::handle object, const Label& label, const Input& other, const Label& other_label);
// Its array, None where there is no input.
inline py::object array_or_none(const Input& input) { return input.array ? input.array : py::none(); }

// What a call writes: the caller's array, in C order; or a new one.
struct Result {
  py::object out, array;  // what is returned, and what it is without its subclass
  Array memory;
};
Result make_result(const py::object& out, const Input& like, const char* name);
// ValueError where the result overlaps an input, unless both are the same array and that is allowed.
void refuse_overlap(const Result& result, const Input& input, const char* name, bool may_be_in_place);

// A Python or NumPy integer, no bool; TypeError.
py::int_ integer(py::handle given, const char* name);

}  // namespace fusedstep::bind
