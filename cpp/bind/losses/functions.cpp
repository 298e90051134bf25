// Losses, each with its gradient, and softmax: every function checks its arguments, then has a backend compute.
#include <cmath>
#include <cstring>

#include "bind/arguments.h"
#include "bind/backend.h"
#include "bind/losses/backend.h"
#include "bind/losses/labels.h"
#include "bind/module.h"
#include "bind/overlap.h"

namespace fusedstep::bind {
namespace {

double smoothing_of(py::handle given) {
  const double value = number(given, "label_smoothing");
  if (!(value >= 0.0 && value <= 1.0)) {
    value_error({"label_smoothing"}, "expected a number in [0, 1], got " + shown(given));
  }
  return value;
}

std::int64_t ignored_label(py::handle given) {
  const py::int_ label = integer(given, "ignore_index");
  int overflow = 0;
  const std::int64_t ignore = PyLong_AsLongLongAndOverflow(label.ptr(), &overflow);
  if (overflow != 0) value_error({"ignore_index"}, "expected an integer of 64 bits, got " + shown(label));
  return ignore;
}

Rows class_rows(const Input& logits) {
  const Rows seen = axes_of(logits.given) < 2 ? Rows{} : rows_of(logits);
  if (seen.classes < 1 || seen.rows < 1) {
    value_error({"logits"}, "expected two axes or more, (…, C), with at least one row and one class, got shape " +
                                shape_text(logits.given));
  }
  return seen;
}

// Gives (loss, dlogits). `check` is asked about probabilities before anything is written, unless it is None.
py::tuple cross_entropy(const py::object& logits, const py::object& labels, const py::object& weight,
                        py::handle ignore_index, py::handle label_smoothing, py::handle reduction_name,
                        const py::object& out, const py::object& check) {
  // Numbers come first, for they may be objects of others, whose code may move arrays.
  const Reduction reduction = reduction_of(reduction_name);
  CrossEntropyWork work = {};
  work.smoothing = smoothing_of(label_smoothing);
  work.ignore = ignored_label(ignore_index);
  work.logits = read(logits, {"logits"});
  work.rows = class_rows(work.logits);
  read_labels(labels, work);
  read_weight(weight, work);
  work.gradient = make_result(out, work.logits, "logits");
  refuse_overlap(work.gradient, work.logits, "logits", true);
  if (share_memory(work.gradient.array, plain(labels))) value_error({"out"}, "overlaps labels");
  if (work.weight.array) refuse_overlap(work.gradient, work.weight, "weight", false);
  if (!work.with_labels && !check.is_none()) check(work.targets.array);

  const LossBackend& backend = *active_backends().losses;
  const double divisor = work.with_labels ? backend.mean_divisor(work) : double(work.rows.rows);
  const Loss loss(reduction, divisor, work.rows.shape, work.logits.memory.dtype);
  if (reduction == Reduction::mean && divisor == 0.0) {
    py::tuple nothing = py::make_tuple(0.0, work.gradient.out);
    std::memset(work.gradient.memory.data, 0, std::size_t(work.gradient.memory.bytes));
    return nothing;
  }
  const double sum = backend.cross_entropy(work, loss);
  return py::make_tuple(loss.of_sum(sum), work.gradient.out);
}

py::object softmax(const py::object& logits, const py::object& out, bool log) {
  const Input input = read(logits, {"logits"});
  if (axes_of(input.given) < 1) value_error({"logits"}, "expected at least one axis, got a number");
  const Result result = make_result(out, input, "logits");
  refuse_overlap(result, input, "logits", true);
  if (input.memory.size > 0) active_backends().losses->softmax(input, result, log);
  return result.out;
}

// Gives (loss, gradient). `check` as above.
py::tuple elementwise(ElementwiseLoss kind, const char* name, const py::object& x, const py::object& targets,
                      double weight, py::handle reduction_name, const py::object& out, const py::object& check) {
  const Reduction reduction = reduction_of(reduction_name);
  ElementwiseWork work = {kind, read(x, {name}), {}, weight, {}};
  if (work.x.memory.size == 0) {
    value_error({name}, "expected at least one element, got shape " + shape_text(work.x.given));
  }
  work.targets = read_like(targets, {"targets"}, work.x, {name});
  work.gradient = make_result(out, work.x, name);
  refuse_overlap(work.gradient, work.x, name, true);
  refuse_overlap(work.gradient, work.targets, "targets", false);
  if (!check.is_none()) check(work.targets.array);
  const Loss loss(reduction, double(work.x.memory.size), shape_of(work.x.given), work.x.memory.dtype);
  const double sum = active_backends().losses->elementwise(work, loss);
  return py::make_tuple(loss.of_sum(sum), work.gradient.out);
}

py::tuple binary_cross_entropy(const py::object& logits, const py::object& targets, py::handle pos_weight,
                               py::handle reduction, const py::object& out, const py::object& check) {
  const double weight = number(pos_weight, "pos_weight");
  const bool wide = is_array(logits) && dtype_text(logits) == "float64";
  if (!(weight >= 0.0 && std::isfinite(wide ? weight : double(float(weight))))) {
    value_error({"pos_weight"},
                "expected a finite number >= 0 of the dtype of the arithmetic, got " + shown(pos_weight));
  }
  return elementwise(ElementwiseLoss::binary, "logits", logits, targets, weight, reduction, out, check);
}

py::tuple squared_error(const py::object& predictions, const py::object& targets, py::handle reduction,
                        const py::object& out) {
  return elementwise(ElementwiseLoss::squared, "predictions", predictions, targets, 1.0, reduction, out, py::none());
}

}  // namespace

void register_losses(py::module_& m) {
  using py::arg;
  m.def("softmax_cross_entropy", &cross_entropy, arg("logits"), arg("labels"), arg("weight"), arg("ignore_index"),
        arg("label_smoothing"), arg("reduction"), arg("out"), arg("check"));
  m.def("softmax", &softmax, arg("logits"), arg("out"), arg("log"));
  m.def("sigmoid_binary_cross_entropy", &binary_cross_entropy, arg("logits"), arg("targets"), arg("pos_weight"),
        arg("reduction"), arg("out"), arg("check"));
  m.def("mean_squared_error", &squared_error, arg("predictions"), arg("targets"), arg("reduction"), arg("out"));
}

}  // namespace fusedstep::bind
