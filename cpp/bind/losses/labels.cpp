#include "bind/losses/labels.h"

#include <cmath>

#include "bind/arguments.h"

namespace fusedstep::bind {
namespace {

std::string text_of(const std::vector<std::int64_t>& shape) {
  py::tuple lengths{shape.size()};
  for (std::size_t k = 0; k < shape.size(); ++k) lengths[k] = shape[k];
  return py::str(lengths);
}

// What labels may be: errors end with it.
std::string expected_labels(const CrossEntropyWork& work) {
  const py::object& logits = work.logits.given;
  return "; labels are class numbers, integers of shape " + text_of(work.rows.shape) + ", or probabilities, " +
         dtype_text(logits) + " of shape " + shape_text(logits);
}

// The place of a row in the array of labels, such as "2, 0".
std::string place_of(std::int64_t row, const std::vector<std::int64_t>& shape) {
  std::string place;
  for (std::size_t k = shape.size(); k-- > 0; row /= shape[k]) {
    place = std::to_string(row % shape[k]) + (place.empty() ? "" : ", ") + place;
  }
  return place;
}

[[noreturn]] void refuse_label(const CrossEntropyWork& work, std::int64_t row, bool is_unsigned) {
  const std::int64_t label = work.labels[std::size_t(row)];
  throw py::value_error("labels[" + place_of(row, work.rows.shape) + "]: expected a class in [0, " +
                        std::to_string(work.rows.classes) + ") or ignore_index " + std::to_string(work.ignore) +
                        ", got " + (is_unsigned ? std::to_string(std::uint64_t(label)) : std::to_string(label)));
}

// Copies the labels: what has been checked is what is used, whoever else writes to them.
void read_classes(const py::object& labels, CrossEntropyWork& work) {
  if (shape_of(labels) != work.rows.shape) {
    value_error({"labels"}, "expected shape " + text_of(work.rows.shape) + " as logits has rows, got " +
                                shape_text(labels) + expected_labels(work));
  }
  const bool is_unsigned = kind_of(labels) == 'u';
  const auto converted = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>(labels);
  const auto classes = std::uint64_t(work.rows.classes);
  // An unsigned label of 2^63 or more becomes negative here; it is not one to be ignored. 0 is a class anyway.
  const std::int64_t ignored = is_unsigned && work.ignore < 0 ? 0 : work.ignore;
  const auto is_bad = [&](std::int64_t label) { return (std::uint64_t(label) >= classes) & (label != ignored); };
  work.labels.resize(std::size_t(converted.size()));
  bool bad = false;
  for (std::size_t row = 0; row < work.labels.size(); ++row) {
    const std::int64_t label = converted.data()[row];
    bad |= is_bad(label);
    work.labels[row] = label;
  }
  if (!bad) return;
  std::size_t row = 0;
  while (!is_bad(work.labels[row])) ++row;
  refuse_label(work, std::int64_t(row), is_unsigned);
}

void read_targets(const py::object& targets, CrossEntropyWork& work) {
  const py::object& logits = work.logits.given;
  if (dtype_text(targets) != dtype_text(logits)) {
    type_error({"labels"}, "expected dtype " + dtype_text(logits) + " as logits has, got " + dtype_text(targets) +
                               expected_labels(work));
  }
  if (shape_of(targets) != shape_of(logits)) {
    value_error({"labels"}, "expected shape " + shape_text(logits) + " as logits has, got " + shape_text(targets) +
                                expected_labels(work));
  }
  work.targets = read(targets, {"labels"});
}

}  // namespace

void read_labels(const py::object& given, CrossEntropyWork& work) {
  const bool is_plain = is_array(given) && !is_masked(given);
  const char kind = is_plain ? kind_of(given) : 'O';
  work.with_labels = kind == 'i' || kind == 'u';
  if (work.with_labels) return read_classes(plain(given), work);
  if (kind == 'f') return read_targets(plain(given), work);
  type_error({"labels"}, "expected an array of integers, or probabilities like logits, got " +
                             (is_plain ? "dtype " + dtype_text(given) : kind_text(given)) + expected_labels(work));
}

void read_weight(const py::object& given, CrossEntropyWork& work) {
  if (given.is_none()) return;
  inspect(given, {"weight"});
  work.weight = read(given, {"weight"});
  const Array& array = work.weight.memory;
  const Dtype dtype = maths_dtype(work.logits.memory.dtype);
  if (array.dtype != dtype) {
    type_error({"weight"},
               std::string("expected ") + dtype_name(dtype) + " for these logits, got " + dtype_text(given));
  }
  if (axes_of(given) != 1 || array.size != work.rows.classes) {
    value_error({"weight"}, "expected shape (" + std::to_string(work.rows.classes) + ",) as logits has classes, got " +
                                shape_text(given));
  }
  work.weights.resize(std::size_t(array.size));
  for (std::size_t k = 0; k < work.weights.size(); ++k) {
    const double value = dtype == Dtype::float64 ? reinterpret_cast<const double*>(array.data)[k]
                                                 : double(reinterpret_cast<const float*>(array.data)[k]);
    if (!(value >= 0.0 && std::isfinite(value))) {
      value_error({"weight", py::ssize_t(k)},
                  "expected a finite number >= 0, got " + std::string(py::str(py::float_(value))));
    }
    work.weights[k] = value;
  }
}

}  // namespace fusedstep::bind
