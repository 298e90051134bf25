// A forward pass as an engine that differentiates keeps it: in arrays only.
#include <algorithm>

#include "bind/arguments.h"
#include "bind/backend.h"
#include "bind/batch_norm/saved.h"

namespace fusedstep::bind {
namespace {

using Mask = std::shared_ptr<std::uint16_t[]>;

// What was saved beside the caller's array: (2, C) mean and inv_std, and the mask. The mask is shared, not copied.
py::tuple batch_norm_parts(const BatchNormSaved& saved) {
  const std::size_t channels = saved.mean.size();
  Doubles statistics({py::ssize_t(2), py::ssize_t(channels)});
  std::copy(saved.mean.begin(), saved.mean.end(), statistics.mutable_data());
  std::copy(saved.inv_std.begin(), saved.inv_std.end(), statistics.mutable_data() + channels);
  if (saved.mask == nullptr) return py::make_tuple(statistics, py::none());
  const py::capsule owner(new Mask(saved.mask), [](void* mask) { delete static_cast<Mask*>(mask); });
  return py::make_tuple(statistics, py::array_t<std::uint16_t>(saved.mask_words, saved.mask.get(), owner));
}

const double* inspect_parts(const py::object& statistics, std::int64_t channels) {
  if (!py::isinstance<Doubles>(statistics) || shape_of(statistics) != std::vector<std::int64_t>{2, channels}) {
    value_error({"statistics"}, "expected a float64 array of shape (2, " + std::to_string(channels) + ")");
  }
  require_contiguous(statistics, {"statistics"});
  return statistics.cast<Doubles>().data();
}

// The memory of a mask, held by its array.
Mask hold_mask(const py::object& mask, std::int64_t words) {
  if (!py::isinstance<py::array_t<std::uint16_t>>(mask) || shape_of(mask) != std::vector<std::int64_t>{words}) {
    value_error({"mask"}, "expected a uint16 array of shape (" + std::to_string(words) + ",)");
  }
  require_contiguous(mask, {"mask"});
  auto* data = static_cast<std::uint16_t*>(const_cast<void*>(mask.cast<py::array>().data()));
  return Mask(data, [held = mask](std::uint16_t*) {});
}

// The inverse: what a forward pass over x saved, from its parts. The count is that of the statistics, None for x's own.
py::object batch_norm_saved(const py::object& x_given, py::handle channel_axis, const py::object& weight_given,
                            const py::object& statistics, const py::object& mask, py::handle training_given,
                            py::handle residual_given, py::handle count_given) {
  const bool training = flag(training_given, "training"), residual = flag(residual_given, "residual");
  const BatchView x = view_batch(x_given, axis_number(channel_axis));
  const double count = count_given.is_none() ? double(x.count()) : require_count(count_given, {"count"});
  const double* values = inspect_parts(statistics, x.c);
  BatchNormSaved saved = {};
  saved.x = x;
  saved.fingerprint = fingerprint(x.memory);
  saved.training = training;
  saved.residual = residual;
  saved.count = count;
  saved.mean.assign(values, values + x.c);
  saved.inv_std.assign(values + x.c, values + 2 * x.c);
  saved.scale.resize(std::size_t(x.c));
  const py::object weight = plain_or_none(weight_given);
  Channels weights;
  saved.double_parameters = x.memory.dtype == Dtype::float64;
  if (!weight.is_none()) {
    const Array memory = inspect_channels(weight, {"weight"}, x, false);
    weights = widen(memory);
    saved.double_parameters = memory.dtype == Dtype::float64;
  }
  active_backends().batch_norm->set_scale(saved.inv_std, weight.is_none() ? nullptr : weights.data(), saved.scale);
  if (!mask.is_none()) {
    saved.mask_words = BatchNormSaved::words_of_mask(x);
    saved.mask = hold_mask(mask, saved.mask_words);
  }
  return py::cast(std::move(saved));
}

}  // namespace

void register_batch_norm_parts(py::module_& m) {
  using py::arg;
  m.def("batch_norm_parts", &batch_norm_parts, arg("saved"));
  m.def("batch_norm_saved", &batch_norm_saved, arg("x"), arg("channel_axis"), arg("weight"), arg("statistics"),
        arg("mask"), arg("training"), arg("residual"), arg("count") = py::none());
}

}  // namespace fusedstep::bind
