#include "bind/step/inspect.h"

#include <algorithm>

#include "maths/random.h"

namespace fusedstep::bind {

void Inspector::inspect(Item& item, const Settings& settings, runtime::StepTensor& tensor) {
  StepArgs& args = tensor.args;
  inspect_param(item, tensor);
  if (item.rows) {
    inspect_rows(item, settings, tensor);
  } else {
    inspect_grad(item, tensor);
  }
  inspect_storage(item, settings, tensor);
  const std::int64_t state_bytes = inspect_states(item, settings, tensor);
  inspect_scalars(item);
  args.ema = settings.average && item.ema ? inspect_exact(item, tensor, item.ema, kAverage) : nullptr;
  tensor.bytes_per_element = 2 * item_bytes(args.param_dtype) + item_bytes(args.grad_dtype) + state_bytes +
                             2 * settings.average * item_bytes(tensor.dtype) +
                             (args.copy != nullptr ? 2 * item_bytes(args.copy_dtype) : 0);
}

void Inspector::inspect_param(const Item& item, runtime::StepTensor& tensor) {
  const Label label = labels_.param(item);
  const Array param = inspect_stored(item.param, label);
  require_dense(item.param, label);
  require_writable(item.param, label);
  if (const char* reason = rule_.refuse_axes(axes_of(item.param))) {
    value_error(label, std::string(reason) + ", got shape " + shape_text(item.param));
  }
  add_written(param, item.index, kParam);
  tensor.args.param = param.data;
  tensor.size = param.size;
  tensor.dtype = maths_dtype(param.dtype);
  tensor.args.param_dtype = param.dtype;
}

// The gradient's dtype: the parameter's, or any whose values the arithmetic holds.
void Inspector::require_grad_dtype(const Item& item, const Array& grad, const runtime::StepTensor& tensor) const {
  if (tensor.dtype == Dtype::float32 && grad.dtype != Dtype::float64) return;
  require_same_dtype(item.grad, labels_.grad(item), item.param, labels_.param(item));
}

void Inspector::inspect_grad(Item& item, runtime::StepTensor& tensor) {
  const Label label = labels_.grad(item);
  Array grad = inspect_stored(item.grad, label);
  require_grad_dtype(item, grad, tensor);
  require_same_shape(item.grad, label, item.param, labels_.param(item));
  if (!same_layout(item.grad, item.param)) {
    py::object copy = array_like(item.param, "empty_like", descr_of(item.grad));
    copy[py::ellipsis()] = plain(item.grad);
    grad = inspect_stored(copy, label);
    item.grad = std::move(copy);
  }
  memory_.add_read({grad.data, grad.bytes, std::int32_t(item.index), kGrad});
  tensor.args.grad_dtype = grad.dtype;
  tensor.args.grad = grad.data;
}

void Inspector::inspect_rows(const Item& item, const Settings& settings, runtime::StepTensor& tensor) {
  const Label label = labels_.grad(item);
  if (const char* reason = rule_.refuse_sparse(settings.hypers)) {
    value_error(label, "with a row-sparse gradient " + std::string(reason));
  }
  if (settings.average) {
    value_error(label, "ema_decay does not apply to a row-sparse gradient: it would move rows that have none");
  }
  const Array grad = inspect_stored(item.grad, label);
  require_grad_dtype(item, grad, tensor);
  tensor.args.grad_dtype = grad.dtype;
  if (!is_contiguous(item.param)) {
    value_error(labels_.param(item), "expected rows in one piece: a C-contiguous array");
  }
  require_rows(item.rows, item.grad, item.param, label);
  tensor.args.grad = grad.data;
  tensor.rows = static_cast<const std::int64_t*>(data_of(item.rows));
  tensor.row_count = shape_of(item.rows)[0];
  tensor.row_size = tensor.row_count == 0 ? 0 : grad.size / tensor.row_count;
}

// How the parameter is stored and rounded.
void Inspector::inspect_storage(const Item& item, const Settings& settings, runtime::StepTensor& tensor) {
  StepArgs& args = tensor.args;
  const bool narrow = args.param_dtype == Dtype::float16 || args.param_dtype == Dtype::bfloat16;
  if (narrow && settings.master) {
    args.copy = args.param;
    args.copy_dtype = args.param_dtype;
    args.follows = item.part.follows;
    args.param_dtype = Dtype::float32;
    args.param = item.master ? inspect_exact(item, tensor, item.master, kMaster) : nullptr;
  }
  args.random_param = narrow && settings.random_param;
  const std::int64_t number = item.part.number < 0 ? std::int64_t(item.index) : item.part.number;
  args.key = rounding_key(settings.seed, item.step, std::max<std::int64_t>(number, 0));
  args.offset = item.part.offset;
  args.coded = narrow || args.grad_dtype != tensor.dtype;
}

// The bytes of an element of all states, read and written.
std::int64_t Inspector::inspect_states(const Item& item, const Settings& settings, runtime::StepTensor& tensor) {
  StepArgs& args = tensor.args;
  std::int64_t bytes = 0;
  for (int s = 0; s < int(rule_.states.size()); ++s) {
    if (!keeps(rule_, item, s)) continue;
    Dtype& stored = args.state_dtype[args.states];
    stored =
        item.state[s] ? inspect_state(item, settings, tensor, s, args) : new_state_dtype(rule_, settings, tensor, s);
    if (item.rows && is_code(stored)) {
      value_error(labels_.grad(item), "a row-sparse gradient does not go with states of 8 bits, which share scales");
    }
    args.coded = args.coded || stored != tensor.dtype;
    bytes += 2 * item_bytes(stored);
    ++args.states;
  }
  return bytes;
}

// What begins as a copy of the parameter, or needs all its bits otherwise, keeps them.
Dtype new_state_dtype(const runtime::Rule& rule, const Settings& settings, const runtime::StepTensor& tensor, int s) {
  if (tensor.dtype == Dtype::float64 || (rule.exact >> s & 1)) return tensor.dtype;
  if (!is_code(settings.state_dtype)) return settings.state_dtype;
  if (tensor.size < settings.least_8bit) return Dtype::float32;
  return rule.squares >> s & 1 ? Dtype::unsigned8 : Dtype::signed8;
}

// An array beside the parameter, of whatever dtype.
Array Inspector::inspect_beside(const Item& item, py::handle object, int role) {
  const Label label = labels_.of(item.index, role);
  const Shape shape = role < 0 ? Shape::same : rule_.shapes[std::size_t(role)];
  const Array array = role < 0 ? inspect_stored(object, label) : inspect_coded(object, label);
  if (shape == Shape::same) {
    require_same_shape(object, label, item.param, labels_.param(item));
    if (!same_layout(object, item.param)) {
      value_error(label, "expected the memory layout of " + labels_.param(item).text());
    }
  } else {
    const std::string expected = py::str(reduced_shape(item.param, shape));
    if (shape_text(object) != expected) {
      value_error(label, "expected shape " + expected + ", got " + shape_text(object));
    }
    require_dense(object, label);
  }
  require_writable(object, label);
  add_written(array, item.index, role);
  return array;
}

// One in the dtype of the arithmetic.
char* Inspector::inspect_exact(const Item& item, const runtime::StepTensor& tensor, py::handle object, int role) {
  const Array array = inspect_beside(item, object, role);
  if (array.dtype != tensor.dtype) {
    type_error(labels_.of(item.index, role), std::string("expected dtype ") + dtype_name(tensor.dtype) + " beside " +
                                                 labels_.param(item).text() + " of " + dtype_text(item.param) +
                                                 ", got " + dtype_text(object));
  }
  return array.data;
}

// A state says itself how it is stored.
Dtype Inspector::inspect_state(const Item& item, const Settings& settings, const runtime::StepTensor& tensor, int s,
                               StepArgs& args) {
  if (tensor.dtype == Dtype::float64 || (rule_.exact >> s & 1)) {
    args.state[args.states] = inspect_exact(item, tensor, item.state[s], s);
    return tensor.dtype;
  }
  const Array array = inspect_beside(item, item.state[s], s);
  args.state[args.states] = array.data;
  if (array.dtype == Dtype::float32) return array.dtype;
  const Label label = labels_.of(item.index, s);
  if (array.dtype == Dtype::float64) {
    type_error(label, "expected dtype float32, float16, bfloat16 or uint8 beside " + labels_.param(item).text() +
                          " of " + dtype_text(item.param) + ", got float64");
  }
  require_bits(rule_, settings, bits_of(array.dtype), label);
  if (!is_code(array.dtype)) return array.dtype;
  inspect_scales(item, tensor, s, &args.scales[args.states]);
  return rule_.squares >> s & 1 ? Dtype::unsigned8 : Dtype::signed8;
}

void Inspector::inspect_scales(const Item& item, const runtime::StepTensor& tensor, int s, float** out) {
  const Label label = labels_.of(item.index, kScales + s);
  if (!item.scales[s]) {
    value_error(label, "missing, and " + labels_.of(item.index, s).text() + " is of 8 bits, which need it");
  }
  const Array array = inspect_contiguous_float32(item.scales[s], label, true);
  const std::string expected = "(" + std::to_string(scales_of(tensor.size)) + ",)";
  if (shape_text(item.scales[s]) != expected) {
    value_error(label, "expected shape " + expected + ", one per " + std::to_string(kScaled) + " elements of " +
                           labels_.param(item).text() + ", got " + shape_text(item.scales[s]));
  }
  add_written(array, item.index, kScales + s);
  *out = reinterpret_cast<float*>(array.data);
}

void Inspector::inspect_scalars(const Item& item) {
  for (std::size_t s = 0; s < rule_.scalars.size(); ++s) {
    const py::object& scalar = item.scalar_array[s];
    if (scalar) add_written(span_of(scalar), item.index, int(rule_.states.size() + s));
  }
}

void Inspector::refuse_overlaps() {
  memory_.run([&](const OverlapCheck::Span& a, const OverlapCheck::Span& b) {
    value_error(labels_.of(a.index, a.role), "overlaps " + labels_.of(b.index, b.role).text() + " in memory");
  });
}

void Inspector::refuse_overlaps(const Inspector& other) {
  constexpr std::int32_t theirs = 1 << 30;
  both_.clear();
  both_.add_all(memory_, 0);
  both_.add_all(other.memory_, theirs);
  const auto label = [&](const OverlapCheck::Span& span) {
    return span.index < theirs ? labels_.of(span.index, span.role) : other.labels_.of(span.index - theirs, span.role);
  };
  both_.run([&](const OverlapCheck::Span& a, const OverlapCheck::Span& b) {
    value_error(label(a), "overlaps " + label(b).text() + " in memory");
  });
}

}  // namespace fusedstep::bind
