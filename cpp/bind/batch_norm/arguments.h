// What the arguments of batch norm must be.
#pragma once

#include <vector>

#include "bind/arrays.h"
#include "bind/batch_norm/view.h"

namespace fusedstep::bind {

using Doubles = py::array_t<double>;
// One number a channel.
using Channels = std::vector<double>;

struct NamedArray {
  Array array;
  Label label;
};
// What is written must overlap nothing else that the call was given. ValueError.
void refuse_overlaps(const std::vector<NamedArray>& written, const std::vector<NamedArray>& read);

// An array of the same dtype, shape and memory order as x.
Array inspect_like(py::handle array, const Label& label, const BatchView& x, const Label& x_label);
// Parameters and running statistics: (C,), float32, or float64 beside a float64 x.
Array inspect_channels(py::handle object, const Label& label, const BatchView& x, bool written);
// Statistics of a batch, and sums of a gradient: (C,) float64.
Array inspect_statistics(py::handle object, const Label& label, std::int64_t channels);
Channels widen(const Array& array);
// Parameters without their subclass, once they are inspected; None as it is.
py::object plain_or_none(const py::object& object);

bool takes_relu(py::handle activation);
double positive_eps(py::handle given);
// An eps that the arithmetic on this dtype has a use for.
void require_eps_for(double eps, Dtype dtype);
double unit_momentum(py::handle given);
double require_count(py::handle given, const Label& label);

}  // namespace fusedstep::bind
