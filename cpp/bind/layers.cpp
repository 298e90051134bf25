// Losses, softmax, dropout, and the rows of a batch.
#include "runtime/layers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "bind/engine.h"
#include "bind/module.h"
#include "runtime/isa.h"

namespace fusedstep::bind {
namespace {

py::object call_reference(const char* function, const py::dict& arguments) {
  return py::module_::import("fusedstep.reference.layers").attr(function)(**arguments);
}

// A dense array in C order of any stored dtype.
Array inspect_contiguous(py::handle object, const Label& label) {
  const Array array = inspect_stored(object, label);
  require_contiguous(object, label);
  return array;
}

// What is beside `other`: its dtype, its shape, C order.
Array inspect_like(py::handle object, const Label& label, py::handle other, const Label& other_label) {
  const Array array = inspect_stored(object, label);
  require_same_dtype(object, label, other, other_label);
  require_same_shape(object, label, other, other_label);
  require_contiguous(object, label);
  return array;
}

// A result: the caller's array, which may be the `first` of the inputs and must overlap no other; or a new one.
Array make_result(py::object& out, py::handle like, const char* name, const Array& input,
                  const std::vector<std::pair<const char*, Array>>& others) {
  if (out.is_none()) {
    out = array_like(like, "empty_like");
    return inspect_stored(out, {"out"});
  }
  const Array result = inspect_like(out, {"out"}, like, {name});
  require_writable(out, {"out"});
  if (result.data != input.data && overlap(result, input)) {
    value_error({"out"}, std::string("overlaps ") + name + " (it may be the same array)");
  }
  for (const auto& [other, array] : others) {
    if (overlap(result, array)) value_error({"out"}, std::string("overlaps ") + other);
  }
  return result;
}

enum class Reduction { none, mean, sum };

Reduction reduction_of(py::handle given) {
  if (py::isinstance<py::str>(given)) {
    const auto text = given.cast<std::string>();
    if (text == "none") return Reduction::none;
    if (text == "mean") return Reduction::mean;
    if (text == "sum") return Reduction::sum;
  }
  value_error({"reduction"}, "expected 'none', 'mean' or 'sum', got " + std::string(py::repr(given)));
}

double number_in(py::handle given, const char* name, double least, double most, const char* domain) {
  const double value = number(given, name);
  if (!(value >= least && value <= most)) {
    value_error({name}, std::string("expected a number ") + domain + ", got " + std::string(py::repr(given)));
  }
  return value;
}

// A Python or NumPy integer; no bool.
py::int_ integer(py::handle given, const char* name) {
  if (!PyBool_Check(given.ptr())) {
    PyObject* index = PyNumber_Index(given.ptr());
    if (index != nullptr) return py::reinterpret_steal<py::int_>(index);
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
    PyErr_Clear();
  }
  type_error({name}, "expected an integer, got " + kind_text(given));
}

std::uint64_t word64(py::handle given, const char* name) {
  const py::int_ value = integer(given, name);
  const std::uint64_t word = PyLong_AsUnsignedLongLong(value.ptr());
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    value_error({name}, "expected an integer in [0, 2^64), got " + std::string(py::str(value)));
  }
  return word;
}

std::int64_t rows_of(py::handle logits) {
  const auto shape = py::reinterpret_borrow<py::tuple>(logits.attr("shape"));
  std::int64_t rows = 1;
  for (std::size_t k = 0; k + 1 < shape.size(); ++k) rows *= shape[k].cast<std::int64_t>();
  return rows;
}

std::int64_t classes_of(py::handle logits, const char* least) {
  const auto shape = py::reinterpret_borrow<py::tuple>(logits.attr("shape"));
  const std::int64_t classes = shape.size() < 2 ? 0 : shape[shape.size() - 1].cast<std::int64_t>();
  if (classes < 1 || rows_of(logits) < 1) {
    value_error({"logits"},
                std::string("expected two axes or more, (…, C), with ") + least + ", got shape " + shape_text(logits));
  }
  return classes;
}

bool has_kind(py::handle array, const char* kinds) {
  return is_array(array) && !is_masked(array) &&
         std::string(kinds).find(array.attr("dtype").attr("kind").cast<char>()) != std::string::npos;
}

struct Labels {
  std::vector<std::int64_t> classes;
  std::int64_t counted;  // those that are not ignored
};

// The class of every row, checked. Copied: what has been checked is what is used, whoever else writes to them.
Labels read_labels(const py::object& labels, py::handle logits, std::int64_t classes, std::int64_t ignore) {
  const py::object expected = logits.attr("shape")[py::slice(0, -1, 1)], given = labels.attr("shape");
  if (!given.equal(expected)) {
    value_error({"labels"},
                "expected shape " + std::string(py::str(expected)) + " as logits has rows, got " + shape_text(labels));
  }
  const bool is_unsigned = labels.attr("dtype").attr("kind").cast<char>() == 'u';
  const auto converted = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>(labels);
  const auto rows = std::int64_t(converted.size());
  Labels read = {std::vector<std::int64_t>(std::size_t(rows)), rows};
  // A large unsigned label has wrapped, and is no negative number that is to be ignored.
  const std::int64_t passed = is_unsigned && ignore < 0 ? 0 : ignore;
  bool bad = false;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t label = converted.data()[row];
    bad |= (std::uint64_t(label) >= std::uint64_t(classes)) & (label != passed);
    read.counted -= label == ignore;
    read.classes[std::size_t(row)] = label;
  }
  if (!bad) return read;
  std::int64_t row = 0;
  while (std::uint64_t(read.classes[std::size_t(row)]) < std::uint64_t(classes) ||
         read.classes[std::size_t(row)] == passed) {
    ++row;
  }
  const py::object index = py::module_::import("numpy")
                               .attr("unravel_index")(row, given)
                               .attr("__getitem__")(py::slice(0, py::ssize_t(axes_of(labels)), 1));
  std::string place;
  for (const py::handle k : index) place += (place.empty() ? "" : ", ") + std::string(py::str(k));
  throw py::value_error("labels[" + place + "]: expected a class in [0, " + std::to_string(classes) +
                        ") or ignore_index " + std::to_string(ignore) + ", got " +
                        std::string(py::str(labels.attr("reshape")(-1)[py::int_(row)])));
}

// The weights of the classes, checked and in double.
std::vector<double> read_weight(py::handle weight, std::int64_t classes, Dtype dtype) {
  const Array array = inspect(weight, {"weight"});
  if (array.dtype != dtype) {
    type_error({"weight"},
               std::string("expected ") + dtype_name(dtype) + " for these logits, got " + dtype_text(weight));
  }
  if (axes_of(weight) != 1 || array.size != classes) {
    value_error({"weight"},
                "expected shape (" + std::to_string(classes) + ",) as logits has classes, got " + shape_text(weight));
  }
  require_contiguous(weight, {"weight"});
  std::vector<double> values(static_cast<std::size_t>(classes));
  for (std::size_t k = 0; k < values.size(); ++k) {
    values[k] = dtype == Dtype::float64 ? reinterpret_cast<const double*>(array.data)[k]
                                        : double(reinterpret_cast<const float*>(array.data)[k]);
    if (!(values[k] >= 0.0 && std::isfinite(values[k]))) {
      value_error({"weight", py::ssize_t(k)},
                  "expected a finite number >= 0, got " + std::string(py::str(py::float_(values[k]))));
    }
  }
  return values;
}

// Losses of the rows as the reduction wants them.
py::object reduced(const std::vector<double>& losses, Reduction reduction, double divisor, py::handle shape,
                   Dtype dtype) {
  if (reduction == Reduction::none) {
    const py::object values = py::module_::import("numpy").attr("empty")(shape, numpy_dtype(maths_dtype(dtype)));
    char* to = inspect(values, {"losses"}).data;
    for (std::size_t row = 0; row < losses.size(); ++row) {
      if (maths_dtype(dtype) == Dtype::float64) {
        reinterpret_cast<double*>(to)[row] = losses[row];
      } else {
        reinterpret_cast<float*>(to)[row] = float(losses[row]);
      }
    }
    return values;
  }
  double sum;
  if (const KernelTable* table = runtime::active_table()) {
    sum = table->sum(losses.data(), std::int64_t(losses.size()));
  } else {
    sum = py::module_::import("fusedstep.reference.sums")
              .attr("lane_sum")(py::array_t<double>(py::ssize_t(losses.size()), losses.data()))
              .cast<double>();
  }
  return py::float_(reduction == Reduction::mean ? sum / divisor : sum);
}

// Gives (loss, dlogits). `check` is asked about probabilities before anything is written, if there is one.
py::tuple cross_entropy(py::object logits, py::object labels, py::object weight, py::object ignore_index,
                        py::object label_smoothing, py::object reduction_name, py::object out, py::object check) {
  const Array input = inspect_contiguous(logits, {"logits"});
  const std::int64_t classes = classes_of(logits, "at least one row and one class"), rows = rows_of(logits);
  const Reduction reduction = reduction_of(reduction_name);
  const double smoothing = number_in(label_smoothing, "label_smoothing", 0.0, 1.0, "in [0, 1]");
  const py::int_ ignored = integer(ignore_index, "ignore_index");
  int overflow = 0;
  const std::int64_t ignore = PyLong_AsLongLongAndOverflow(ignored.ptr(), &overflow);
  if (overflow != 0)
    value_error({"ignore_index"}, "expected an integer of 64 bits, got " + std::string(py::str(ignored)));

  CrossEntropyArgs args = {};
  const bool plain = is_array(labels) && !is_masked(labels), words = plain && dtype_text(labels) == "bfloat16";
  const bool with_labels = has_kind(labels, "iu") && !words;
  Labels wanted = {{}, rows};
  std::vector<std::pair<const char*, Array>> others;
  if (with_labels) {
    wanted = read_labels(labels, logits, classes, ignore);
  } else if (plain && (has_kind(labels, "f") || words)) {
    const Array targets = inspect_like(labels, {"labels"}, logits, {"logits"});
    others.push_back({"labels", targets});
    args.targets = targets.data;
  } else {
    type_error({"labels"}, "expected an array of integers, or probabilities like logits, got " +
                               (plain ? "dtype " + dtype_text(labels) : kind_text(labels)));
  }
  std::vector<double> weights;
  if (!weight.is_none()) {
    weights = read_weight(weight, classes, maths_dtype(input.dtype));
    const Array array = inspect(weight, {"weight"});
    others.push_back({"weight", array});
    args.weight = array.data;
  }
  if (with_labels && !out.is_none() && is_array(out) &&
      py::module_::import("numpy").attr("may_share_memory")(out, labels).cast<bool>()) {
    value_error({"out"}, "overlaps labels");
  }
  const Array result = make_result(out, logits, "logits", input, others);
  if (!with_labels && !check.is_none()) check(labels);

  double divisor = double(wanted.counted);
  if (with_labels && !weights.empty()) {
    divisor = 0.0;
    for (const std::int64_t label : wanted.classes) divisor += label == ignore ? 0.0 : weights[std::size_t(label)];
  }
  if (reduction == Reduction::mean && divisor == 0.0) {
    out.attr("fill")(0);
    return py::make_tuple(0.0, out);
  }
  args.rows = rows;
  args.classes = classes;
  args.logits = input.data;
  args.labels = with_labels ? wanted.classes.data() : nullptr;
  args.ignore = ignore;
  args.peak = 1.0 - smoothing;
  args.rest = smoothing / double(classes);
  args.dlogits = result.data;
  args.scale = reduction == Reduction::mean ? 1.0 / divisor : 1.0;
  const Goal goal = with_labels && smoothing == 0.0  ? Goal::labels
                    : with_labels && weights.empty() ? Goal::smooth_labels
                                                     : Goal::targets;
  std::vector<double> losses(static_cast<std::size_t>(rows));
  args.losses = losses.data();
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    const py::object rowwise = py::make_tuple(rows, classes);
    const auto rows_of_array = [&](const py::object& array) { return array.attr("reshape")(rowwise); };
    const auto given = call_reference(
        "cross_entropy",
        py::dict(py::arg("logits") = rows_of_array(logits),
                 py::arg("labels") =
                     with_labels ? py::object(py::array_t<std::int64_t>(rows, wanted.classes.data())) : py::none(),
                 py::arg("ignore") = ignore, py::arg("targets") = with_labels ? py::none() : rows_of_array(labels),
                 py::arg("weight") = weight, py::arg("goal") = int(goal), py::arg("peak") = args.peak,
                 py::arg("rest") = args.rest, py::arg("scale") = args.scale, py::arg("dlogits") = rows_of_array(out)));
    const auto array = given.cast<py::array_t<double>>();
    std::memcpy(losses.data(), array.data(), losses.size() * sizeof(double));
  } else {
    const py::gil_scoped_release released;
    runtime::cross_entropy(*table, input.dtype, goal, args);
  }
  const py::object shape = logits.attr("shape")[py::slice(0, -1, 1)];
  return py::make_tuple(reduced(losses, reduction, divisor, shape, input.dtype), out);
}

py::object softmax(py::object logits, py::object out, bool log) {
  const Array input = inspect_contiguous(logits, {"logits"});
  if (axes_of(logits) < 1) value_error({"logits"}, "expected at least one axis, got a number");
  const Array result = make_result(out, logits, "logits", input, {});
  const auto shape = py::reinterpret_borrow<py::tuple>(logits.attr("shape"));
  const auto classes = shape[shape.size() - 1].cast<std::int64_t>();
  if (input.size == 0) return out;
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    call_reference("softmax", py::dict(py::arg("logits") = logits, py::arg("out") = out, py::arg("log") = log));
  } else {
    const py::gil_scoped_release released;
    runtime::softmax(*table, input.dtype, log, {input.size / classes, classes, input.data, result.data, false});
  }
  return out;
}

// Gives (loss, gradient). `check` as above.
py::tuple elementwise(ElementwiseLoss loss, const char* name, py::object x, py::object targets, double weight,
                      py::object reduction_name, py::object out, const py::object& check) {
  const Array input = inspect_contiguous(x, {name});
  if (input.size == 0) value_error({name}, "expected at least one element, got shape " + shape_text(x));
  const Array wanted = inspect_like(targets, {"targets"}, x, {name});
  const Reduction reduction = reduction_of(reduction_name);
  const Array result = make_result(out, x, name, input, {{"targets", wanted}});
  if (!check.is_none()) check(targets);
  const double n = double(input.size), scale = reduction == Reduction::mean ? 1.0 / n : 1.0;
  py::object losses = py::none();
  char* loss_data = nullptr;
  if (reduction == Reduction::none) {
    losses = array_like(x, "empty_like", numpy_dtype(maths_dtype(input.dtype)));
    loss_data = inspect(losses, {"losses"}).data;
  }
  double sum;
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    sum = call_reference(loss == ElementwiseLoss::binary ? "binary_cross_entropy" : "squared_error",
                         py::dict(py::arg("x") = x, py::arg("targets") = targets, py::arg("weight") = weight,
                                  py::arg("scale") = scale, py::arg("losses") = losses, py::arg("dx") = out))
              .cast<double>();
  } else {
    const py::gil_scoped_release released;
    sum = runtime::elementwise_loss(*table, input.dtype, loss,
                                    {input.data, wanted.data, result.data, loss_data, weight, scale}, input.size);
  }
  if (reduction != Reduction::none) losses = py::float_(reduction == Reduction::mean ? sum / n : sum);
  return py::make_tuple(losses, out);
}

py::tuple binary_cross_entropy(py::object logits, py::object targets, py::object pos_weight, py::object reduction,
                               py::object out, py::object check) {
  const double weight = number(pos_weight, "pos_weight");
  const bool wide = is_array(logits) && dtype_text(logits) == "float64";
  if (!(weight >= 0.0 && std::isfinite(wide ? weight : double(float(weight))))) {
    value_error({"pos_weight"}, "expected a finite number >= 0 of the dtype of the arithmetic, got " +
                                    std::string(py::repr(pos_weight)));
  }
  return elementwise(ElementwiseLoss::binary, "logits", logits, targets, weight, reduction, out, check);
}

py::tuple squared_error(py::object predictions, py::object targets, py::object reduction, py::object out) {
  return elementwise(ElementwiseLoss::squared, "predictions", predictions, targets, 1.0, reduction, out, py::none());
}

// y = residual + dropout(x): of elements, or of whole samples, which the first axis counts.
py::object dropout(py::object x, py::object p, py::object seed, py::object offset, py::object residual, py::object out,
                   const char* name, bool samples) {
  const Array input = inspect_contiguous(x, {name});
  if (samples && axes_of(x) < 1) value_error({name}, "expected at least one axis, got a number");
  const double rate = number(p, "p");
  const double words = std::nearbyint(rate * 0x1p32);
  if (!(rate >= 0.0 && words < 0x1p32)) {
    value_error({"p"}, "expected a number in [0, 1), to 32 bits, got " + std::string(py::repr(p)));
  }
  DropoutArgs args = {};
  const std::int64_t choices = samples ? std::int64_t(py::len(x)) : input.size;
  args.unit = samples && choices > 0 ? input.size / choices : 1;
  args.key = word64(seed, "seed");
  args.offset = word64(offset, "offset");
  if (args.offset + std::uint64_t(choices) < args.offset) {
    value_error({"offset"}, std::string("expected offset and ") + (samples ? "samples" : "elements") +
                                " below 2^64, got " + std::string(py::repr(offset)));
  }
  std::vector<std::pair<const char*, Array>> others;
  if (!residual.is_none()) {
    const Array array = inspect_like(residual, {"residual"}, x, {name});
    args.residual = array.data;
    // The sum may stand in its place, as in that of x.
    if (out.is_none() || !is_array(out) || inspect_stored(out, {"out"}).data != array.data) {
      others.push_back({"residual", array});
    }
  }
  const Array result = make_result(out, x, name, input, others);
  args.x = input.data;
  args.y = result.data;
  args.threshold = std::uint32_t(words);
  args.scale = 1.0 / (1.0 - words * 0x1p-32);
  if (input.size == 0) return out;
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    call_reference("dropout",
                   py::dict(py::arg("x") = x, py::arg("residual") = residual, py::arg("y") = out,
                            py::arg("key") = args.key, py::arg("offset") = args.offset, py::arg("unit") = args.unit,
                            py::arg("threshold") = args.threshold, py::arg("scale") = args.scale));
  } else {
    const py::gil_scoped_release released;
    runtime::dropout(*table, input.dtype, args, input.size);
  }
  return out;
}

// out[k] = source[rows[k]] for arrays of any plain dtype.
void gather_rows(const py::array& source, const py::array_t<std::int64_t, py::array::c_style>& rows,
                 const py::array& out) {
  const auto count = std::int64_t(rows.size());
  const bool plain = !source.dtype().attr("hasobject").cast<bool>();
  if (!plain || rows.ndim() != 1 || source.ndim() < 1 || out.ndim() != source.ndim() || !is_contiguous(source) ||
      !is_contiguous(out) || !out.writeable() || !source.dtype().equal(out.dtype()) || out.shape(0) != count) {
    throw py::value_error("gather_rows: expected C-contiguous arrays of one plain dtype, as many rows as numbers");
  }
  std::int64_t row_bytes = source.itemsize();
  for (py::ssize_t k = 1; k < source.ndim(); ++k) {
    if (source.shape(k) != out.shape(k)) throw py::value_error("gather_rows: expected rows of one shape");
    row_bytes *= source.shape(k);
  }
  // Copied: what has been checked is what is used.
  std::vector<std::int64_t> checked(rows.data(), rows.data() + count);
  for (std::size_t k = 0; k < checked.size(); ++k) {
    if (checked[k] < 0 || checked[k] >= source.shape(0)) {
      throw py::index_error("rows[" + std::to_string(k) + "]: expected a number in [0, " +
                            std::to_string(source.shape(0)) + "), got " + std::to_string(checked[k]));
    }
  }
  const auto* from = static_cast<const char*>(source.data());
  auto* to = const_cast<char*>(static_cast<const char*>(out.data()));
  const py::gil_scoped_release released;
  runtime::gather_rows(from, checked.data(), to, count, row_bytes);
}

const KernelTable& native_table() {
  if (const KernelTable* table = runtime::active_table()) return *table;
  throw py::value_error("isa: 'numpy' has no native kernels");
}

// Philox words of whole groups, and exp and log as the kernels compute them.
py::array_t<std::uint32_t> philox_words(std::uint64_t key, std::uint64_t upper, std::uint64_t group,
                                        std::int64_t groups) {
  py::array_t<std::uint32_t> words(groups * 64);
  native_table().philox(key, upper, group, groups, words.mutable_data());
  return words;
}
void map_floats(const std::string& function, py::handle x, py::handle out) {
  const Array from = inspect_contiguous_float32(x, {"x"}, false);
  const Array to = inspect_contiguous_float32(out, {"out"}, true);
  require_same_shape(out, {"out"}, x, {"x"});
  const KernelTable& table = native_table();
  (function == "exp" ? table.exponential : table.log_1p)(reinterpret_cast<const float*>(from.data),
                                                         reinterpret_cast<float*>(to.data), from.size);
}

}  // namespace

void register_layers(py::module_& m) {
  m.def("softmax_cross_entropy", &cross_entropy);
  m.def("softmax", &softmax);
  m.def("sigmoid_binary_cross_entropy", &binary_cross_entropy);
  m.def("mean_squared_error", &squared_error);
  m.def("dropout", &dropout);
  m.def("gather_rows", &gather_rows, py::arg("source"), py::arg("rows").noconvert(), py::arg("out"));
  m.def("philox_words", &philox_words);
  m.def("map_floats", &map_floats);
}

}  // namespace fusedstep::bind
