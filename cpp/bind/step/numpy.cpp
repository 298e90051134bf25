// A step by the NumPy reference.
#include "bind/step/backend.h"
#include "bind/step/reference.h"

namespace fusedstep::bind {
namespace {

using runtime::Ranged;

py::object step_reference() { return py::module_::import("fusedstep.reference.step"); }
py::object equations() { return py::module_::import("fusedstep.reference.whole_step"); }

py::tuple pair_of(const Ranged& sum) { return py::make_tuple(sum.value, sum.exponent); }

Ranged ranged_of(py::handle pair) {
  const auto parts = py::reinterpret_borrow<py::tuple>(pair);
  return {parts[0].cast<double>(), parts[1].cast<int>()};
}

std::optional<double> optional_of(py::handle value) {
  return value.is_none() ? std::nullopt : std::optional<double>(value.cast<double>());
}

runtime::Telemetry telemetry_of(py::handle given) {
  const auto fields = py::reinterpret_borrow<py::tuple>(given);
  return {fields[0].cast<double>(), fields[1].cast<double>(), fields[2].cast<double>(),
          optional_of(fields[3]),   optional_of(fields[4]),   fields[5].cast<double>()};
}

class NumpyStep : public StepBackend {
 public:
  void measure_gradients(const runtime::Rule&, StepWork& work) const override {
    py::list grads;
    for (const Item& item : *work.items) {
      grads.append(py::make_tuple(item.grad, bool(item.rows), item.part.squares));
    }
    // Per gradient the squares as a pair, and how many elements are not finite.
    const py::list all = step_reference().attr("gradient_sums")(grads);
    work.sums.assign(work.tensors.size() * kStepSums, 0.0);
    work.exponents.assign(work.sums.size(), 0);
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      const py::tuple sums = all[k];
      put(work, k, kGradSquares, ranged_of(sums[0]));
      put(work, k, kNonFinite, {sums[1].cast<double>(), 0});
    }
  }

  void prepare(const runtime::Rule& rule, StepWork& work) const override {
    use_plain_arrays(*work.items);
    py::list tensors;
    for (std::size_t k = 0; k < work.tensors.size(); ++k) tensors.append(describe(rule, work, k));
    py::dict shared;
    if (rule.shared_scalars) {
      for (std::size_t s = 0; s < rule.scalars.size(); ++s) shared[rule.scalars[s]] = work.shared[s];
    }
    const py::object add = work.peers == nullptr ? py::object(py::none()) : py::object(work.peers->add());
    // Gives what to write where and the sums of telemetry by tensor, and leaves the scalars advanced.
    const py::tuple computed = step_reference().attr("compute")(rule.name, tensors, shared, work.telemetry(), add);
    for (const py::handle pair : computed[0]) {
      const auto both = py::reinterpret_borrow<py::tuple>(pair);
      work.writes.add(both[0], both[1]);
    }
    for (std::size_t s = 0; s < rule.scalars.size(); ++s) {
      const char* name = rule.scalars[s];
      if (rule.shared_scalars) work.shared[s] = shared[name].cast<double>();
      for (std::size_t k = 0; k < work.tensors.size() && !rule.shared_scalars; ++k) {
        (*work.items)[k].advanced[s] = tensors[k]["scalars"][name].cast<double>();
      }
    }
    if (work.telemetry()) keep_sums(work, computed[1]);
  }

  void write(StepWork& work) const override { work.writes.run(); }

  void measure(const runtime::Rule&, StepWork&) const override {}

  runtime::GradientNorm gradient_norm(const StepWork& work) const override {
    py::list squares, nonfinite;
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      squares.append(pair_of(work.sum(k, kGradSquares)));
      nonfinite.append(work.sum(k, kNonFinite).value);
    }
    const py::tuple norm = equations().attr("gradient_norm")(squares, nonfinite, work.grad_scale);
    return {ranged_of(norm[0]), norm[1].cast<double>(), norm[2].cast<double>()};
  }

  double clip_coefficient(double max_norm, const runtime::GradientNorm& gradient, double grad_scale) const override {
    const py::object norm =
        equations().attr("GradientNorm")(pair_of(gradient.squares), gradient.norm, gradient.nonfinite);
    return equations().attr("clip_coefficient")(max_norm, norm, grad_scale).cast<double>();
  }

  runtime::StepTelemetry telemetry(const std::vector<runtime::TensorSums>& tensors, double grad_scale) const override {
    py::list given;
    for (const runtime::TensorSums& tensor : tensors) {
      py::list sums;
      for (const Ranged& sum : tensor.sums) sums.append(pair_of(sum));
      given.append(equations().attr("TensorSums")(sums, tensor.moment_sign, tensor.averages));
    }
    const py::tuple made = equations().attr("telemetry_of")(given, grad_scale);
    runtime::StepTelemetry all = {telemetry_of(made[0]), {}};
    for (const py::handle one : made[1]) all.tensors.push_back(telemetry_of(one));
    return all;
  }

 private:
  static void put(StepWork& work, std::size_t k, int which, const Ranged& sum) {
    work.sums[k * kStepSums + std::size_t(which)] = sum.value;
    work.exponents[k * kStepSums + std::size_t(which)] = sum.exponent;
  }

  static void keep_sums(StepWork& work, const py::list& sums) {
    work.sums.assign(work.tensors.size() * kStepSums, 0.0);
    work.exponents.assign(work.sums.size(), 0);
    for (std::size_t k = 0; k < work.tensors.size(); ++k) {
      const py::list of_tensor = sums[k];
      for (int s = 0; s < kStepSums; ++s) put(work, k, s, ranged_of(of_tensor[std::size_t(s)]));
    }
    work.measured = true;
  }

  // The reference computes with the arrays, and a subclass may redefine arithmetic.
  static void use_plain_arrays(std::vector<Item>& items) {
    const auto strip = [](py::object& array) {
      if (array) array = plain(array);
    };
    for (Item& item : items) {
      for (py::object* array : {&item.param, &item.grad, &item.rows, &item.ema, &item.master}) strip(*array);
      for (py::object& state : item.state) strip(state);
      for (py::object& scales : item.scales) strip(scales);
    }
  }
};

}  // namespace

std::unique_ptr<const StepBackend> numpy_step() { return std::make_unique<const NumpyStep>(); }

}  // namespace fusedstep::bind
