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

// What a call reads: as it was given but for its subclass, and in C order, copied where it lies otherwise.
struct Input {
  py::object given, array;
  Array memory;
  bool copied() const { return !given.is(array); }
};

Input read(py::handle object, const Label& label) {
  Input input = {plain(object), {}, inspect_stored(object, label)};
  input.array = in_c_order(input.given);
  if (input.copied()) input.memory = inspect_stored(input.array, label);
  return input;
}

// What is beside `other`: its dtype and its shape.
Input read_like(py::handle object, const Label& label, const Input& other, const Label& other_label) {
  inspect_stored(object, label);
  require_same_dtype(object, label, other.given, other_label);
  require_same_shape(object, label, other.given, other_label);
  return read(object, label);
}

// A result: the caller's array, in C order; or a new one.
struct Result {
  py::object out, array;  // what is returned, and what it is without its subclass
  Array memory;
};

Result make_result(const py::object& out, const Input& like, const char* name) {
  if (out.is_none()) {
    const py::object made = array_like(like.array, "empty_like");
    return {made, made, inspect_stored(made, {"out"})};
  }
  const Result result = {out, plain(out), inspect_stored(out, {"out"})};
  require_same_dtype(out, {"out"}, like.given, {name});
  require_same_shape(out, {"out"}, like.given, {name});
  require_contiguous(out, {"out"});
  require_writable(out, {"out"});
  return result;
}

bool in_place(const Result& result, const Input& input) {
  return !input.copied() && result.memory.data == input.memory.data;
}

void refuse_overlap(const Result& result, const Input& input, const char* name, bool may_be_in_place) {
  if ((may_be_in_place && in_place(result, input)) || !share_memory(result.array, input.given)) return;
  value_error({"out"}, std::string("overlaps ") + name + (may_be_in_place ? " (it may be the same array)" : ""));
}

enum class Reduction { none, mean, sum };

Reduction reduction_of(py::handle given) {
  if (is_text(given, "none")) return Reduction::none;
  if (is_text(given, "mean")) return Reduction::mean;
  if (is_text(given, "sum")) return Reduction::sum;
  value_error({"reduction"}, "expected 'none', 'mean' or 'sum', got " + shown(given));
}

double number_in(py::handle given, const char* name, double least, double most, const char* domain) {
  const double value = number(given, name);
  if (!(value >= least && value <= most)) {
    value_error({name}, std::string("expected a number ") + domain + ", got " + shown(given));
  }
  return value;
}

// A Python or NumPy integer; no bool.
py::int_ integer(py::handle given, const char* name) {
  if (!PyBool_Check(given.ptr())) {
    PyObject* index = PyNumber_Index(given.ptr());
    if (index != nullptr) return py::reinterpret_steal<py::int_>(index);
    if (!PyErr_ExceptionMatches(PyExc_Exception)) throw py::error_already_set();
    PyErr_Clear();
  }
  type_error({name}, "expected an integer, got " + kind_text(given));
}

std::uint64_t word64(py::handle given, const char* name) {
  const py::int_ value = integer(given, name);
  const std::uint64_t word = PyLong_AsUnsignedLongLong(value.ptr());
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    value_error({name}, "expected an integer in [0, 2^64), got " + shown(value));
  }
  return word;
}

// Rows of classes, the last axis.
struct Rows {
  std::vector<std::int64_t> shape;  // without the classes
  std::int64_t rows = 1, classes = 0;
};

Rows rows_of(const Input& logits) {
  Rows seen = {shape_of(logits.given)};
  seen.classes = seen.shape.back();
  seen.shape.pop_back();
  for (const std::int64_t length : seen.shape) seen.rows *= length;
  return seen;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  py::tuple lengths{shape.size()};
  for (std::size_t k = 0; k < shape.size(); ++k) lengths[k] = shape[k];
  return py::str(lengths);
}

// What labels may be, behind what is wrong with these.
std::string labels_text(const Rows& seen, const Input& logits) {
  return "; labels are class numbers, integers of shape " + shape_text(seen.shape) + ", or probabilities, " +
         dtype_text(logits.given) + " of shape " + bind::shape_text(logits.given);
}

struct Labels {
  std::vector<std::int64_t> classes;
  std::int64_t counted;  // those that are not ignored
};

// The class of every row, checked. Copied: what has been checked is what is used, whoever else writes to them.
Labels read_labels(const py::object& labels, const Input& logits, const Rows& seen, std::int64_t ignore) {
  if (shape_of(labels) != seen.shape) {
    value_error({"labels"}, "expected shape " + shape_text(seen.shape) + " as logits has rows, got " +
                                bind::shape_text(labels) + labels_text(seen, logits));
  }
  const bool is_unsigned = kind_of(labels) == 'u';
  const auto converted = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>(labels);
  const auto rows = std::int64_t(converted.size());
  Labels read = {std::vector<std::int64_t>(std::size_t(rows)), rows};
  // A large unsigned label has wrapped, and is no negative number that is to be ignored.
  const std::int64_t passed = is_unsigned && ignore < 0 ? 0 : ignore;
  bool bad = false;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t label = converted.data()[row];
    bad |= (std::uint64_t(label) >= std::uint64_t(seen.classes)) & (label != passed);
    read.counted -= label == ignore;
    read.classes[std::size_t(row)] = label;
  }
  if (!bad) return read;
  std::int64_t row = 0;
  while (std::uint64_t(read.classes[std::size_t(row)]) < std::uint64_t(seen.classes) ||
         read.classes[std::size_t(row)] == passed) {
    ++row;
  }
  std::string place;
  std::int64_t rest = row;
  for (std::size_t k = seen.shape.size(); k-- > 0; rest /= seen.shape[k]) {
    place = std::to_string(rest % seen.shape[k]) + (place.empty() ? "" : ", ") + place;
  }
  const std::int64_t label = read.classes[std::size_t(row)];
  throw py::value_error("labels[" + place + "]: expected a class in [0, " + std::to_string(seen.classes) +
                        ") or ignore_index " + std::to_string(ignore) + ", got " +
                        (is_unsigned ? std::to_string(std::uint64_t(label)) : std::to_string(label)));
}

// The weights of the classes, checked and in double.
std::vector<double> read_weight(const Input& weight, std::int64_t classes, Dtype dtype) {
  const Array& array = weight.memory;
  if (array.dtype != dtype) {
    type_error({"weight"},
               std::string("expected ") + dtype_name(dtype) + " for these logits, got " + dtype_text(weight.given));
  }
  if (axes_of(weight.given) != 1 || array.size != classes) {
    value_error({"weight"}, "expected shape (" + std::to_string(classes) + ",) as logits has classes, got " +
                                bind::shape_text(weight.given));
  }
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

// Losses as the reduction wants them. Everything that may fail comes before the first result is written.
class Reduced {
 public:
  Reduced(Reduction reduction, double divisor, const std::vector<std::int64_t>& shape, Dtype dtype)
      : reduction_(reduction), divisor_(divisor), dtype_(maths_dtype(dtype)) {
    if (reduction_ != Reduction::none) return;
    py::array made(py::dtype(dtype_name(dtype_)), shape);
    data_ = static_cast<char*>(made.mutable_data());
    values_ = std::move(made);
  }

  // Where they go one by one, null where they are added up.
  char* data() const { return data_; }
  py::object array() const { return values_; }

  py::object of_sum(double sum) const {
    if (reduction_ == Reduction::none) return values_;
    return py::float_(reduction_ == Reduction::mean ? sum / divisor_ : sum);
  }
  py::object of_rows(const std::vector<double>& losses) const {
    if (reduction_ != Reduction::none) return of_sum(sum_of(losses));
    for (std::size_t row = 0; row < losses.size(); ++row) {
      if (dtype_ == Dtype::float64) {
        reinterpret_cast<double*>(data_)[row] = losses[row];
      } else {
        reinterpret_cast<float*>(data_)[row] = float(losses[row]);
      }
    }
    return values_;
  }

 private:
  static double sum_of(const std::vector<double>& losses) {
    if (const KernelTable* table = runtime::active_table()) {
      return table->arrays->sum(losses.data(), std::int64_t(losses.size()));
    }
    const py::array_t<double> array(py::ssize_t(losses.size()), losses.data());
    return call_reference("total", py::dict(py::arg("losses") = array)).cast<double>();
  }

  Reduction reduction_;
  double divisor_;
  Dtype dtype_;
  py::object values_ = py::none();
  char* data_ = nullptr;
};

// Gives (loss, dlogits). `check` is asked about probabilities before anything is written, if there is one.
py::tuple cross_entropy(py::object logits, py::object labels_given, py::object weight_given, py::object ignore_index,
                        py::object label_smoothing, py::object reduction_name, py::object out, py::object check) {
  // Numbers come first, for they may be objects of others, whose code may move arrays.
  const Reduction reduction = reduction_of(reduction_name);
  const double smoothing = number_in(label_smoothing, "label_smoothing", 0.0, 1.0, "in [0, 1]");
  const py::int_ ignored = integer(ignore_index, "ignore_index");
  int overflow = 0;
  const std::int64_t ignore = PyLong_AsLongLongAndOverflow(ignored.ptr(), &overflow);
  if (overflow != 0) value_error({"ignore_index"}, "expected an integer of 64 bits, got " + shown(ignored));

  const Input input = read(logits, {"logits"});
  const Rows seen = axes_of(input.given) < 2 ? Rows{} : rows_of(input);
  if (seen.classes < 1 || seen.rows < 1) {
    value_error({"logits"}, "expected two axes or more, (…, C), with at least one row and one class, got shape " +
                                bind::shape_text(input.given));
  }
  const bool is_plain = is_array(labels_given) && !is_masked(labels_given);
  const py::object labels = is_plain ? plain(labels_given) : labels_given;
  const char kind = is_plain ? kind_of(labels) : 'O';
  const bool with_labels = kind == 'i' || kind == 'u';
  if (!with_labels && kind != 'f') {
    type_error({"labels"}, "expected an array of integers, or probabilities like logits, got " +
                               (is_plain ? "dtype " + dtype_text(labels) : kind_text(labels)) +
                               labels_text(seen, input));
  }
  Labels wanted = {{}, seen.rows};
  Input targets, weight;
  if (with_labels) {
    wanted = read_labels(labels, input, seen, ignore);
  } else {
    if (dtype_text(labels) != dtype_text(input.given)) {
      type_error({"labels"}, "expected dtype " + dtype_text(input.given) + " as logits has, got " + dtype_text(labels) +
                                 labels_text(seen, input));
    }
    if (shape_of(labels) != shape_of(input.given)) {
      value_error({"labels"}, "expected shape " + bind::shape_text(input.given) + " as logits has, got " +
                                  bind::shape_text(labels) + labels_text(seen, input));
    }
    targets = read(labels, {"labels"});
  }
  std::vector<double> weights;
  if (!weight_given.is_none()) {
    inspect(weight_given, {"weight"});
    weight = read(weight_given, {"weight"});
    weights = read_weight(weight, seen.classes, maths_dtype(input.memory.dtype));
  }
  const Result result = make_result(out, input, "logits");
  refuse_overlap(result, input, "logits", true);
  if (share_memory(result.array, labels)) value_error({"out"}, "overlaps labels");
  if (weight.array) refuse_overlap(result, weight, "weight", false);
  if (!with_labels && !check.is_none()) check(targets.array);

  double divisor = double(wanted.counted);
  if (with_labels && !weights.empty()) {
    divisor = 0.0;
    for (const std::int64_t label : wanted.classes) divisor += label == ignore ? 0.0 : weights[std::size_t(label)];
  }
  const Reduced reduced(reduction, divisor, seen.shape, input.memory.dtype);
  if (reduction == Reduction::mean && divisor == 0.0) {
    py::tuple nothing = py::make_tuple(0.0, result.out);
    std::memset(result.memory.data, 0, std::size_t(result.memory.bytes));
    return nothing;
  }
  CrossEntropyArgs args = {};
  args.rows = seen.rows;
  args.classes = seen.classes;
  args.logits = input.memory.data;
  args.labels = with_labels ? wanted.classes.data() : nullptr;
  args.targets = with_labels ? nullptr : targets.memory.data;
  args.weight = weight.array ? weight.memory.data : nullptr;
  args.ignore = ignore;
  args.peak = 1.0 - smoothing;
  args.rest = smoothing / double(seen.classes);
  args.dlogits = result.memory.data;
  args.scale = reduction == Reduction::mean ? 1.0 / divisor : 1.0;
  const Goal goal = with_labels && smoothing == 0.0  ? Goal::labels
                    : with_labels && weights.empty() ? Goal::smooth_labels
                                                     : Goal::targets;
  std::vector<double> losses(static_cast<std::size_t>(seen.rows));
  args.losses = losses.data();
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    const py::object rowwise = py::make_tuple(seen.rows, seen.classes);
    const auto rows_of_array = [&](const py::object& array) { return array.attr("reshape")(rowwise); };
    const py::object classes =
        with_labels ? py::object(py::array_t<std::int64_t>(seen.rows, wanted.classes.data())) : py::none();
    const py::tuple computed = call_reference(
        "cross_entropy",
        py::dict(py::arg("logits") = rows_of_array(input.array), py::arg("labels") = classes,
                 py::arg("ignore") = ignore,
                 py::arg("targets") = with_labels ? py::none() : rows_of_array(targets.array),
                 py::arg("weight") = weight.array ? weight.array : py::none(), py::arg("goal") = int(goal),
                 py::arg("peak") = args.peak, py::arg("rest") = args.rest, py::arg("scale") = args.scale));
    const auto array = computed[0].cast<py::array_t<double>>();
    std::memcpy(losses.data(), array.data(), losses.size() * sizeof(double));
    py::tuple both = py::make_tuple(reduced.of_rows(losses), result.out);
    call_reference("store", py::dict(py::arg("out") = rows_of_array(result.array), py::arg("values") = computed[1]));
    return both;
  }
  {
    const py::gil_scoped_release released;
    runtime::cross_entropy(*table, input.memory.dtype, goal, args);
  }
  return py::make_tuple(reduced.of_rows(losses), result.out);
}

py::object softmax(py::object logits, py::object out, bool log) {
  const Input input = read(logits, {"logits"});
  if (axes_of(input.given) < 1) value_error({"logits"}, "expected at least one axis, got a number");
  const Result result = make_result(out, input, "logits");
  refuse_overlap(result, input, "logits", true);
  const Rows seen = rows_of(input);
  if (input.memory.size == 0) return result.out;
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    call_reference("softmax",
                   py::dict(py::arg("logits") = input.array, py::arg("out") = result.array, py::arg("log") = log));
  } else {
    const py::gil_scoped_release released;
    runtime::softmax(*table, input.memory.dtype, log,
                     {seen.rows, seen.classes, input.memory.data, result.memory.data, false});
  }
  return result.out;
}

// Gives (loss, gradient). `check` as above.
py::tuple elementwise(ElementwiseLoss loss, const char* name, py::object x, py::object targets, double weight,
                      py::object reduction_name, py::object out, const py::object& check) {
  const Reduction reduction = reduction_of(reduction_name);
  const Input input = read(x, {name});
  if (input.memory.size == 0) {
    value_error({name}, "expected at least one element, got shape " + bind::shape_text(input.given));
  }
  const Input wanted = read_like(targets, {"targets"}, input, {name});
  const Result result = make_result(out, input, name);
  refuse_overlap(result, input, name, true);
  refuse_overlap(result, wanted, "targets", false);
  if (!check.is_none()) check(wanted.array);
  const double n = double(input.memory.size), scale = reduction == Reduction::mean ? 1.0 / n : 1.0;
  const Reduced reduced(reduction, n, shape_of(input.given), input.memory.dtype);
  double sum;
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    sum = call_reference(
              loss == ElementwiseLoss::binary ? "binary_cross_entropy" : "squared_error",
              py::dict(py::arg("x") = input.array, py::arg("targets") = wanted.array, py::arg("weight") = weight,
                       py::arg("scale") = scale, py::arg("losses") = reduced.array(), py::arg("dx") = result.array))
              .cast<double>();
  } else {
    const py::gil_scoped_release released;
    sum = runtime::elementwise_loss(
        *table, input.memory.dtype, loss,
        {input.memory.data, wanted.memory.data, result.memory.data, reduced.data(), weight, scale}, input.memory.size);
  }
  return py::make_tuple(reduced.of_sum(sum), result.out);
}

py::tuple binary_cross_entropy(py::object logits, py::object targets, py::object pos_weight, py::object reduction,
                               py::object out, py::object check) {
  const double weight = number(pos_weight, "pos_weight");
  const bool wide = is_array(logits) && dtype_text(logits) == "float64";
  if (!(weight >= 0.0 && std::isfinite(wide ? weight : double(float(weight))))) {
    value_error({"pos_weight"},
                "expected a finite number >= 0 of the dtype of the arithmetic, got " + shown(pos_weight));
  }
  return elementwise(ElementwiseLoss::binary, "logits", logits, targets, weight, reduction, out, check);
}

py::tuple squared_error(py::object predictions, py::object targets, py::object reduction, py::object out) {
  return elementwise(ElementwiseLoss::squared, "predictions", predictions, targets, 1.0, reduction, out, py::none());
}

// y = residual + dropout(x): of elements, or of whole samples, which the first axis counts.
py::object dropout(py::object x, py::object p, py::object seed, py::object offset, py::object residual_given,
                   py::object out, const char* name, bool samples) {
  const double rate = number(p, "p");
  const double words = std::nearbyint(rate * 0x1p32);
  if (!(rate >= 0.0 && words < 0x1p32)) {
    value_error({"p"}, "expected a number in [0, 1), to 32 bits, got " + shown(p));
  }
  DropoutArgs args = {};
  args.key = word64(seed, "seed");
  args.offset = word64(offset, "offset");
  args.threshold = std::uint32_t(words);
  args.scale = 1.0 / (1.0 - words * 0x1p-32);

  const Input input = read(x, {name});
  if (samples && axes_of(input.given) < 1) value_error({name}, "expected at least one axis, got a number");
  const std::int64_t choices = samples ? shape_of(input.given)[0] : input.memory.size;
  args.unit = samples && choices > 0 ? input.memory.size / choices : 1;
  if (args.offset + std::uint64_t(choices) < args.offset) {
    value_error({"offset"}, std::string("expected offset and ") + (samples ? "samples" : "elements") +
                                " below 2^64, got " + shown(offset));
  }
  Input residual;
  if (!residual_given.is_none()) residual = read_like(residual_given, {"residual"}, input, {name});
  const Result result = make_result(out, input, name);
  refuse_overlap(result, input, name, true);
  // The sum may stand in its place, as in that of x.
  if (residual.array) refuse_overlap(result, residual, "residual", true);
  args.x = input.memory.data;
  args.y = result.memory.data;
  args.residual = residual.array ? residual.memory.data : nullptr;
  if (input.memory.size == 0) return result.out;
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) {
    call_reference(
        "dropout",
        py::dict(py::arg("x") = input.array, py::arg("residual") = residual.array ? residual.array : py::none(),
                 py::arg("y") = result.array, py::arg("key") = args.key, py::arg("offset") = args.offset,
                 py::arg("unit") = args.unit, py::arg("threshold") = args.threshold, py::arg("scale") = args.scale));
  } else {
    const py::gil_scoped_release released;
    runtime::dropout(*table, input.memory.dtype, args, input.memory.size);
  }
  return result.out;
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
  native_table().dropout->philox(key, upper, group, groups, words.mutable_data());
  return words;
}
void map_floats(const std::string& function, py::handle x, py::handle out) {
  const Array from = inspect_contiguous_float32(x, {"x"}, false);
  const Array to = inspect_contiguous_float32(out, {"out"}, true);
  require_same_shape(out, {"out"}, x, {"x"});
  const KernelTable& table = native_table();
  (function == "exp" ? table.arrays->exponential : table.arrays->log_1p)(reinterpret_cast<const float*>(from.data),
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
