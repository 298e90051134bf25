#include "bind/step/report.h"

namespace fusedstep::bind {
namespace {

// What is known, by name: a tuple of None for all that nothing asked for is hard to read.
std::string known_fields(py::handle report, const PyStructSequence_Desc& description) {
  std::string text;
  for (int k = 0; k < description.n_in_sequence; ++k) {
    const py::handle value = PyStructSequence_GET_ITEM(report.ptr(), k);
    if (value.is_none()) continue;
    if (!text.empty()) text += ", ";
    text += std::string(description.fields[k].name) + "=";
    const bool many = PyTuple_Check(value.ptr()) && std::string(description.fields[k].name) == "tensors";
    text += many ? std::string("<").append(std::to_string(PyTuple_GET_SIZE(value.ptr()))).append(">")
                 : std::string(py::repr(value));
  }
  return std::string(description.name) + "(" + text + ")";
}

PyTypeObject* make_type(PyStructSequence_Desc& description) {
  PyTypeObject* type = PyStructSequence_NewType(&description);
  if (type == nullptr) throw py::error_already_set();
  const py::handle made(reinterpret_cast<PyObject*>(type));
  const PyStructSequence_Desc* of = &description;
  made.attr("__repr__") = py::cpp_function([of](py::handle report) { return known_fields(report, *of); },
                                           py::name("__repr__"), py::is_method(made));
  return type;
}

constexpr const char* kNormDoc =
    "norm of the gradient, after division by grad_scale and before clipping; None where "
    "nothing asked for it";

PyTypeObject* report_type() {
  static PyStructSequence_Field fields[] = {
      {"step", "steps taken, this one included"},
      {"lr", "learning rate of this step; a tuple of one per group where there are several groups"},
      {"grad_norm", kNormDoc},
      {"clip_coefficient", "what max_grad_norm multiplied the gradients by; None without it"},
      {"skipped", "whether skip_nonfinite left this step out"},
      {"update_norm", "telemetry: norm of the change of the parameters"},
      {"param_norm", "telemetry: norm of the parameters before the step"},
      {"update_ratio", "telemetry: update_norm / param_norm; None where param_norm is 0"},
      {"grad_momentum_cosine",
       "telemetry: cosine of the angle between the gradient and the updated average of the "
       "gradients, over the parameters that have one; None where it is not a number"},
      {"nonfinite", "elements of the gradients that are infinite or NaN; None where nothing asked for it"},
      {"tensors", "telemetry: a TensorReport per parameter, None for one without gradient"},
      {nullptr, nullptr}};
  static PyStructSequence_Desc description = {"fusedstep.StepReport", "What a step did.", fields, 11};
  static PyTypeObject* type = make_type(description);
  return type;
}

PyTypeObject* tensor_report_type() {
  static PyStructSequence_Field fields[] = {{"grad_norm", "norm of its gradient, after division by grad_scale"},
                                            {"update_norm", "norm of its change"},
                                            {"param_norm", "its norm before the step"},
                                            {"update_ratio", "update_norm / param_norm"},
                                            {"grad_momentum_cosine", "see StepReport"},
                                            {"nonfinite", "elements of its gradient that are infinite or NaN"},
                                            {nullptr, nullptr}};
  static PyStructSequence_Desc description = {"fusedstep.TensorReport", "Telemetry of one parameter.", fields, 6};
  static PyTypeObject* type = make_type(description);
  return type;
}

py::object none_or(bool known, double value) { return known ? py::object(py::float_(value)) : py::object(py::none()); }

py::object none_or(const std::optional<double>& value) { return none_or(value.has_value(), value.value_or(0.0)); }

py::object count(double elements) { return py::int_(std::int64_t(elements)); }

template <std::size_t n>
py::object make(PyTypeObject* type, py::object (&fields)[n]) {
  auto made = py::reinterpret_steal<py::object>(PyStructSequence_New(type));
  if (!made) throw py::error_already_set();
  for (std::size_t k = 0; k < n; ++k) PyStructSequence_SetItem(made.ptr(), py::ssize_t(k), fields[k].release().ptr());
  return made;
}

py::object tensor_report(const runtime::Telemetry& of) {
  py::object fields[] = {py::float_(of.grad_norm), py::float_(of.update_norm),       py::float_(of.param_norm),
                         none_or(of.update_ratio), none_or(of.grad_momentum_cosine), count(of.nonfinite)};
  return make(tensor_report_type(), fields);
}

py::tuple tensor_reports(const Outcome& outcome, const ReportFacts& facts) {
  py::tuple tensors(facts.params);
  for (std::size_t k = 0; k < facts.params; ++k) tensors[k] = py::none();
  for (std::size_t k = 0; k < facts.items.size(); ++k) {
    tensors[std::size_t(facts.items[k].index)] = tensor_report(outcome.telemetry.tensors[k]);
  }
  return tensors;
}

py::object lr_of(const std::vector<double>& lrs) {
  if (lrs.size() == 1) return py::float_(lrs[0]);
  py::tuple rates(lrs.size());
  for (std::size_t g = 0; g < lrs.size(); ++g) rates[g] = lrs[g];
  return rates;
}

}  // namespace

py::object make_report(const Outcome& outcome, const ReportFacts& facts) {
  const runtime::Telemetry& whole = outcome.telemetry.whole;
  const bool measured = outcome.measured;
  py::object fields[] = {py::int_(facts.step),
                         lr_of(facts.lrs),
                         none_or(outcome.has_norm, outcome.grad_norm),
                         none_or(facts.clips && !outcome.skipped, outcome.clip_coefficient),
                         py::bool_(outcome.skipped),
                         none_or(measured, whole.update_norm),
                         none_or(measured, whole.param_norm),
                         none_or(whole.update_ratio),
                         none_or(whole.grad_momentum_cosine),
                         outcome.has_norm ? count(outcome.nonfinite) : py::object(py::none()),
                         measured ? py::object(tensor_reports(outcome, facts)) : py::object(py::none())};
  return make(report_type(), fields);
}

void register_report(py::module_& m) {
  m.attr("StepReport") = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(report_type()));
  m.attr("TensorReport") = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(tensor_report_type()));
}

}  // namespace fusedstep::bind
