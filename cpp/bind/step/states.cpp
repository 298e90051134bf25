#include "bind/step/states.h"

namespace fusedstep::bind {
namespace {

// One value everywhere, which of 8 bits is the largest code.
void fill(py::object& made, py::object& scales, Dtype stored, double value) {
  static const py::handle codec = py::module_::import("fusedstep.reference.codec").release();
  if (!is_code(stored)) {
    const py::object one = py::module_::import("numpy").attr("array")(value, numpy_dtype(Dtype::float32));
    made[py::ellipsis()] = bits_of(stored) == 16 ? codec.attr("narrowed")(one, made.attr("dtype")) : py::float_(value);
    return;
  }
  const py::object one = py::module_::import("numpy").attr("full")(1, value, numpy_dtype(Dtype::float32));
  const py::tuple coded = codec.attr("encode_8bit")(one, stored == Dtype::signed8);
  made[py::ellipsis()] = coded[0];
  scales[py::ellipsis()] = coded[1];
}

py::object zeros(const py::object& shape, Dtype dtype) {
  static const py::handle function = py::object(py::module_::import("numpy").attr("zeros")).release();
  return function(shape, numpy_dtype(dtype));
}

py::object copy_of_param(const Item& item, Dtype dtype) {
  py::object made = array_like(item.param, "empty_like", numpy_dtype(dtype));
  copy_values(item.param, made);
  return made;
}

// The s-th state, of those that the item keeps the `kept`-th.
void make_state(const runtime::Rule& rule, Item& item, const Settings& settings, runtime::StepTensor& tensor, int s,
                int kept) {
  const Dtype stored = tensor.args.state_dtype[kept];
  const Shape shape = rule.shapes[std::size_t(s)];
  const double value = rule.initial(settings.hypers, s);
  py::object made;
  if (shape != Shape::same) {
    made = zeros(reduced_shape(item.param, shape), stored);
  } else if (rule.copies >> s & 1) {
    made = copy_of_param(item, stored);
  } else {
    made = array_like(item.param, "zeros_like", numpy_dtype(stored));
    if (is_code(stored)) {
      item.scales[s] = zeros(py::int_(scales_of(tensor.size)), Dtype::float32);
      tensor.args.scales[kept] = static_cast<float*>(data_of(item.scales[s]));
    }
  }
  if (value != 0.0) fill(made, item.scales[s], stored, value);
  item.state[s] = made;
  tensor.args.state[kept] = data_of(made);
}

}  // namespace

void make_states(const runtime::Rule& rule, StepWork& work) {
  for (std::size_t k = 0; k < work.tensors.size(); ++k) {
    Item& item = (*work.items)[k];
    runtime::StepTensor& tensor = work.tensors[k];
    const Settings& settings = work.settings(item);
    int kept = 0;
    for (int s = 0; s < int(rule.states.size()); ++s) {
      if (!keeps(rule, item, s)) continue;
      if (!item.state[s]) make_state(rule, item, settings, tensor, s, kept);
      ++kept;
    }
    if (settings.average && !item.ema) {
      item.ema = copy_of_param(item, tensor.dtype);
      item.ema_made = true;
      tensor.args.ema = data_of(item.ema);
    }
    if (tensor.args.copy != nullptr && !item.master) {
      item.master = copy_of_param(item, tensor.dtype);
      item.master_made = true;
      tensor.args.param = data_of(item.master);
    }
  }
}

}  // namespace fusedstep::bind
