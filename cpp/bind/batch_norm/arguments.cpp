#include "bind/batch_norm/arguments.h"

#include <cmath>

#include "bind/arguments.h"
#include "bind/overlap.h"
#include "runtime/batch_norm_channels.h"

namespace fusedstep::bind {

void refuse_overlaps(const std::vector<NamedArray>& written, const std::vector<NamedArray>& read) {
  for (std::size_t k = 0; k < written.size(); ++k) {
    const auto refuse = [&](const NamedArray& other) {
      if (overlap(written[k].array, other.array)) {
        value_error(written[k].label, "overlaps " + other.label.text() + " in memory");
      }
    };
    for (std::size_t other = 0; other < k; ++other) refuse(written[other]);
    for (const NamedArray& other : read) refuse(other);
  }
}

Array inspect_like(py::handle array, const Label& label, const BatchView& x, const Label& x_label) {
  const Array memory = inspect_stored(array, label);
  require_same_dtype(array, label, x.array, x_label);
  require_same_shape(array, label, x.array, x_label);
  if (!same_layout(array, x.array)) {
    value_error(label, "expected the memory order of " + x_label.text() + ", strides " + strides_text(x.array) +
                           ", got " + strides_text(array));
  }
  return memory;
}

namespace {

void require_channels(py::handle object, const Label& label, const Array& array, std::int64_t channels) {
  require_contiguous(object, label);
  if (axes_of(object) != 1 || array.size != channels) {
    value_error(label, "expected shape (" + std::to_string(channels) + ",), got " + shape_text(object));
  }
}

}  // namespace

Array inspect_channels(py::handle object, const Label& label, const BatchView& x, bool written) {
  const Array array = inspect(object, label);
  if (array.dtype == Dtype::float64 && x.memory.dtype != Dtype::float64) {
    type_error(label, "expected float32, got dtype float64; only a float64 x has float64 parameters and statistics");
  }
  require_channels(object, label, array, x.c);
  if (written) require_writable(object, label);
  return array;
}

Array inspect_statistics(py::handle object, const Label& label, std::int64_t channels) {
  const Array array = inspect(object, label);
  if (array.dtype != Dtype::float64) type_error(label, "expected float64, got dtype " + dtype_text(object));
  require_channels(object, label, array, channels);
  return array;
}

Channels widen(const Array& array) {
  const runtime::ChannelArray numbers(array.data, array.dtype);
  Channels values(static_cast<std::size_t>(array.size));
  for (std::int64_t c = 0; c < array.size; ++c) values[std::size_t(c)] = numbers[c];
  return values;
}

py::object plain_or_none(const py::object& object) {
  return is_array(object) && !is_masked(object) ? plain(object) : object;
}

bool takes_relu(py::handle activation) {
  if (activation.is_none()) return false;
  if (!py::isinstance<py::str>(activation)) {
    type_error({"activation"}, "expected 'relu' or None, got " + kind_text(activation));
  }
  if (!is_text(activation, "relu")) {
    value_error({"activation"}, "expected 'relu' or None, got " + shown(activation));
  }
  return true;
}

double positive_eps(py::handle given) {
  const double eps = number(given, "eps");
  if (!(eps > 0.0 && std::isfinite(eps))) {
    value_error({"eps"}, "expected a finite number > 0, got " + shown(py::float_(eps)));
  }
  return eps;
}

// A constant channel is multiplied by 1 / sqrt(eps). Where that is infinite, 0 times it is NaN; so it must be finite
// in the arithmetic's dtype, and in double its square too.
void require_eps_for(double eps, Dtype dtype) {
  const bool wide = maths_dtype(dtype) == Dtype::float64;
  const double least = wide ? 0x1p-1020 : 0x1p-254;
  if (eps >= least) return;
  value_error({"eps"}, std::string("expected a number >= ") + (wide ? "9e-308" : "3.5e-77") + " in the arithmetic of " +
                           dtype_name(maths_dtype(dtype)) + ", got " + shown(py::float_(eps)));
}

double unit_momentum(py::handle given) {
  if (given.is_none()) {
    type_error({"momentum"}, "expected a number, got None; fs.BatchNorm keeps the cumulative average");
  }
  const double momentum = number(given, "momentum");
  if (!(momentum >= 0.0 && momentum <= 1.0)) {
    value_error({"momentum"}, "expected a number in [0, 1], got " + shown(py::float_(momentum)));
  }
  return momentum;
}

double require_count(py::handle given, const Label& label) {
  const double count = number(given, label.role);
  if (!(count >= 2.0 && std::isfinite(count) && count == std::floor(count))) {
    value_error(label, "expected more than one value per channel, got " + shown(given));
  }
  return count;
}

}  // namespace fusedstep::bind
