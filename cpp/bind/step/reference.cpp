#include "bind/step/reference.h"

namespace fusedstep::bind {
namespace {

py::object none_or(const py::object& object) { return object ? object : py::object(py::none()); }

py::object reference() { return py::module_::import("fusedstep.reference.step"); }

std::vector<runtime::Ranged> ranged(const py::handle& given) {
  std::vector<runtime::Ranged> sums;
  for (const py::handle pair : given) {
    const auto parts = py::reinterpret_borrow<py::tuple>(pair);
    sums.push_back({parts[0].cast<double>(), parts[1].cast<int>()});
  }
  return sums;
}

// A hyper-parameter as Python has it.
py::object python_value(const Field& field, double value) {
  if (field.optional && value != value) return py::none();
  if (field.domain == Domain::flag) return py::bool_(value != 0.0);
  if (field.domain == Domain::choice) return py::str(field.choices[int(value)]);
  return py::float_(value);
}

py::dict describe_hypers(const runtime::Rule& rule, const double* value) {
  py::dict hypers;
  for (const Field& field : rule.fields) {
    if (field.count == 1) {
      hypers[field.name] = python_value(field, *value++);
      continue;
    }
    py::tuple values{std::size_t(field.count)};
    for (int i = 0; i < field.count; ++i) values[std::size_t(i)] = python_value(field, *value++);
    hypers[field.name] = values;
  }
  return hypers;
}

// The states that it keeps, as arrays or pairs of codes and scales; and which of them never fall below 0.
void describe_states(const runtime::Rule& rule, const Item& item, py::dict& tensor) {
  py::dict kept;
  py::list squares;
  for (int s = 0; s < int(rule.states.size()); ++s) {
    if (!keeps(rule, item, s)) continue;
    const char* name = rule.states[std::size_t(s)];
    kept[name] = item.scales[s] ? py::make_tuple(item.state[s], item.scales[s]) : item.state[s];
    if (rule.squares >> s & 1) squares.append(name);
  }
  tensor["states"] = kept;
  tensor["squares"] = squares;
  tensor["first_moment"] =
      keeps_moment(rule, item) ? py::object(py::str(rule.states[std::size_t(rule.first_moment)])) : py::none();
}

}  // namespace

py::dict describe(const runtime::Rule& rule, const StepWork& work, std::size_t k) {
  const Item& item = (*work.items)[k];
  const Settings& settings = work.settings(item);
  const StepArgs& args = work.tensors[k].args;
  py::dict tensor, scalars;
  if (!rule.shared_scalars) {
    for (std::size_t s = 0; s < rule.scalars.size(); ++s) scalars[rule.scalars[s]] = item.scalars[s];
  }
  tensor["param"] = item.param;
  tensor["grad"] = item.grad;
  tensor["rows"] = none_or(item.rows);
  describe_states(rule, item, tensor);
  tensor["master"] = args.copy != nullptr ? item.master : py::object(py::none());
  tensor["random_param"] = args.random_param;
  tensor["place"] = item.index;
  tensor["offset"] = args.offset;
  tensor["follows"] = item.part.follows;
  tensor["whole_size"] = work.whole_size(k);
  tensor["key"] = args.key;
  tensor["ema"] = settings.average ? item.ema : py::object(py::none());
  tensor["hypers"] = describe_hypers(rule, settings.hypers);
  tensor["step"] = item.step;
  tensor["first"] = item.first;
  tensor["scalars"] = scalars;
  tensor["cautious"] = settings.cautious;
  tensor["maximize"] = settings.maximize;
  tensor["grad_scale"] = work.grad_scale;
  tensor["clip_coefficient"] = work.clip_coefficient;
  tensor["decay"] = settings.coupled_decay;
  tensor["ema_decay"] = settings.ema_decay;
  tensor["ema_warmup"] = settings.ema_warmup;
  return tensor;
}

std::vector<runtime::Ranged> reference_squares(const Item& item, double squares) {
  const py::object sum = reference().attr("squares_again")(item.grad, bool(item.rows), squares);
  return ranged(py::make_tuple(sum));
}

std::vector<runtime::Ranged> reference_telemetry(const runtime::Rule& rule, const Item& item, const py::object& before,
                                                 const double* sums) {
  const py::object moment = keeps_moment(rule, item) ? item.state[rule.first_moment] : py::object(py::none());
  py::list totals;
  for (int s = 0; s < kStepSums; ++s) totals.append(sums[s]);
  return ranged(reference().attr("measured_again")(totals, item.grad, before, item.param, moment, none_or(item.rows)));
}

std::vector<runtime::Ranged> reference_measures(const runtime::Rule& rule, const StepWork& work, std::size_t k) {
  return ranged(reference().attr("measures_again")(rule.name, describe(rule, work, k), py::dict()));
}

std::vector<double> reference_norms(const runtime::Rule& rule, const StepWork& work, std::size_t k) {
  std::vector<double> norms;
  for (const py::handle norm : reference().attr("norms_again")(rule.name, describe(rule, work, k), py::dict())) {
    norms.push_back(norm.cast<double>());
  }
  return norms;
}

}  // namespace fusedstep::bind
