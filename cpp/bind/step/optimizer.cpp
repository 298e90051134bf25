// The native half of an optimizer: from its groups, state and gradients to items of the engine, and back.
#include <pybind11/native_enum.h>

#include <optional>

#include "bind/memory.h"
#include "bind/module.h"
#include "bind/step/entries.h"
#include "bind/step/gradients.h"
#include "bind/step/groups.h"
#include "bind/step/report.h"

namespace fusedstep::bind {
namespace {

py::object hold(py::handle object) { return py::reinterpret_borrow<py::object>(object); }

class Optimizer {
 public:
  Optimizer(const std::string& rule, Structure structure, std::int64_t taken)
      : engine_(rule, Naming::optimizer), entries_(engine_), structure_(structure), taken_(taken) {
    if (taken < 0 || taken >= kMaxSteps) value_error({"step"}, "expected a count >= 0, got " + std::to_string(taken));
  }

  std::int64_t taken() const { return taken_; }
  // Shape and dtype of each parameter, as it was given.
  py::list known() const {
    py::list all;
    for (const Geometry& geometry : known_) {
      all.append(py::make_tuple(geometry.lengths(), dtype_name(geometry.dtype)));
    }
    return all;
  }

  // Hyper-parameters, options and parameters, as a step would find them; schedules are not asked.
  void check(const py::list& groups) {
    const CallInProgress call(*this, groups, py::dict());
    read_settings(groups, Schedules::skip);
    std::vector<py::handle> params;
    for (const Settings& group : settings_) {
      for (const py::handle param : group.params) params.push_back(param);
    }
    known_ = engine_.check_params(params);
  }

  // `given`: per group, its parameters as they were given; `measured`: None, or (value, exponent, nonfinite), the
  // squares of all gradients together and how many elements are not finite, where that is known.
  py::object step(const py::list& groups, const py::dict& state, const py::list& given, py::handle grads,
                  py::handle grad_scale, const py::object& measured) {
    const CallInProgress call(*this, groups, state);
    const double scale = collect(groups, state, given, grads, grad_scale);
    std::optional<GradientSquares> known;
    if (!measured.is_none()) {
      const auto [value, exponent, nonfinite] = measured.cast<std::tuple<double, int, double>>();
      known = GradientSquares{{value, exponent}, nonfinite};
    }
    Ledger ledger;
    py::object made;
    const auto settle = [&](const Outcome& outcome) {
      entries_.write(ledger, state, items_);
      entries_.write_shared(ledger, groups, shared_);
      if (outcome.measured || !settings_[0].whole.telemetry) made = report(outcome, taken_ + 1);
    };
    try {
      const Outcome& outcome =
          engine_.run(items_, settings_, shared_, scale, std::ref(settle), nullptr, known ? &*known : nullptr);
      if (!outcome.skipped) count_step(ledger);
      return made ? made : report(outcome, taken_);
    } catch (...) {
      if (engine_.written() && !ledger.empty()) count_step(ledger);
      throw;
    }
  }

  // All checks of a step, which writes nothing. Where `measure`, of each gradient (value, exponent, nonfinite): its
  // squares, and how many elements are not finite.
  py::list look(const py::list& groups, const py::dict& state, const py::list& given, py::handle grads,
                py::handle grad_scale, bool measure) {
    const CallInProgress call(*this, groups, state);
    const double scale = collect(groups, state, given, grads, grad_scale);
    engine_.check(items_, settings_, shared_, scale);
    py::list all;
    if (!measure || items_.empty()) return all;
    for (const GradientSquares& sums : engine_.measure(items_, settings_)) {
      all.append(py::make_tuple(sums.squares.value, sums.squares.exponent, sums.nonfinite));
    }
    return all;
  }

  // ValueError where what the last checks of two optimizers saw overlaps.
  void refuse_overlaps(const py::list& groups, Optimizer& other, const py::list& its_groups) {
    const CallInProgress call(*this, groups, py::dict()), its_call(other, its_groups, py::dict());
    engine_.refuse_overlaps(other.engine_);
  }

 private:
  // All that a step needs; its scale.
  double collect(const py::list& groups, const py::dict& state, const py::list& given, py::handle grads,
                 py::handle grad_scale) {
    const double scale = number(grad_scale, "grad_scale");
    if (taken_ + 1 >= kMaxSteps) value_error({"step"}, "expected fewer than 2^53 steps, got " + std::to_string(taken_));
    read_settings(groups, Schedules::ask);
    check_containers(given, settings_.size());
    grads_.read(structure_, grads, settings_, given);
    collect_items(state);
    engine_.view(items_);
    for (Item& item : items_) {
      entries_.read(settings_[std::size_t(item.group)], item);
      follow_layout(item, state);
      engine_.view_states(item);
    }
    entries_.read_shared(groups, settings_[0], shared_);
    return scale;
  }

  // One call at a time: the workspace is shared, and a schedule, or another thread while this one computes, may call.
  // Holds what the call was given, and only meanwhile: the garbage collector cannot see what a native object holds.
  class CallInProgress {
   public:
    CallInProgress(Optimizer& optimizer, py::list groups, py::dict state)
        : optimizer_(optimizer), groups_(std::move(groups)), state_(std::move(state)) {
      if (optimizer_.busy_) throw std::runtime_error("step: this optimizer is in the middle of a step");
      optimizer_.busy_ = true;
      optimizer_.engine_.name_after(groups_);
    }
    ~CallInProgress() {
      optimizer_.engine_.name_after({});
      optimizer_.items_.clear();
      optimizer_.grads_.clear();
      optimizer_.settings_.clear();
      optimizer_.busy_ = false;
    }
    CallInProgress(const CallInProgress&) = delete;
    CallInProgress& operator=(const CallInProgress&) = delete;

   private:
    Optimizer& optimizer_;
    const py::list groups_;
    const py::dict state_;
  };

  void read_settings(const py::list& groups, Schedules schedules) {
    read_groups(engine_, groups, schedules, taken_, last_lrs_, entries_.scalar_names(), settings_);
    check_groups(groups, settings_);
    lrs_.clear();
    for (const Settings& settings : settings_) lrs_.push_back(engine_.lr_of(settings));
  }

  // One a parameter that has a gradient.
  void collect_items(py::handle state) {
    py::ssize_t all = 0;
    for (const Settings& group : settings_) all += params_in(group);
    if (py::ssize_t(grads_.size()) != all) {
      value_error({"grads"}, "expected " + std::to_string(all) + " arrays, got " + std::to_string(grads_.size()));
    }
    items_.clear();
    items_.reserve(std::size_t(all));
    py::ssize_t index = 0;
    for (std::size_t g = 0; g < settings_.size(); ++g) {
      const py::handle params = settings_[g].params;
      for (py::ssize_t k = 0; k < PyList_GET_SIZE(params.ptr()); ++k, ++index) {
        const py::handle grad = grads_[index];
        if (grad.is_none()) continue;
        Item& item = items_.emplace_back();
        item.group = int(g);
        item.index = index;
        item.owner = hold(PyList_GET_ITEM(params.ptr(), k));
        item.grad = hold(grad);
        item.entry = hold(get(state, entries_.key(index)));
      }
    }
  }

  // Memory that moved is followed; another shape or dtype is another parameter. Where the axes lie in another order
  // now, so do the states.
  void follow_layout(Item& item, const py::dict& state) {
    if (std::size_t(item.index) >= known_.size()) value_error({"params", item.index}, "add a group by add_param_group");
    Geometry& known = known_[std::size_t(item.index)];
    // Somebody has put another one into the group.
    if (!known.owner.is(item.owner)) known = geometry_of(item.owner, item.param, {"params", item.index});
    const Label label = engine_.param_label(item);
    known.require_same(item.param, label);
    if (known.same_strides(item.param)) return;
    if (item.entry) {
      static const py::handle states = py::module_::import("fusedstep.optimizers.base.states").release();
      const py::object relaid = states.attr("relaid")(engine_.rule().name, item.entry, item.param);
      if (PyDict_SetItem(state.ptr(), entries_.key(item.index).ptr(), relaid.ptr()) != 0) throw py::error_already_set();
      item.entry = relaid;
      entries_.read(settings_[std::size_t(item.group)], item);
    }
    known = geometry_of(item.owner, item.param, label);
  }

  // The step is taken, whatever comes after it.
  void count_step(Ledger& ledger) {
    ++taken_;
    last_lrs_ = lrs_;
    ledger.keep();
    tell_owners();
  }

  py::object report(const Outcome& outcome, std::int64_t taken) const {
    return make_report(outcome, {taken, lrs_, settings_[0].whole.clip, grads_.size(), items_});
  }

  // Other libraries learn that their memory was written.
  void tell_owners() const {
    std::vector<py::handle> written;
    for (const Item& item : items_) {
      if (!is_array(item.owner) || has_base(item.owner)) written.push_back(item.owner);
    }
    if (!written.empty()) wrote(written);
  }

  Engine engine_;
  StateEntries entries_;
  const Structure structure_;
  std::int64_t taken_;
  bool busy_ = false;
  double shared_[kMaxScalars] = {};
  // Reused from step to step.
  std::vector<Geometry> known_;
  std::vector<double> lrs_, last_lrs_;  // of the groups: in this call, and in the last step
  std::vector<Settings> settings_;
  Gradients grads_;
  std::vector<Item> items_;
};

}  // namespace

void register_optimizer(py::module_& m) {
  py::native_enum<Structure>(m, "Structure", "enum.Enum", "How the parameters were given.")
      .value("array", Structure::array)
      .value("list", Structure::list)
      .value("dict", Structure::dict)
      .value("groups", Structure::groups)
      .finalize();
  register_report(m);
  py::class_<Optimizer>(m, "Optimizer", py::is_final(), whole_from_birth())
      .def(py::init<const std::string&, Structure, std::int64_t>())
      .def("step", &Optimizer::step, py::arg("groups"), py::arg("state"), py::arg("given"), py::arg("grads"),
           py::arg("grad_scale"), py::arg("measured") = py::none())
      .def("look", &Optimizer::look)
      .def("refuse_overlaps", &Optimizer::refuse_overlaps)
      .def("check", &Optimizer::check)
      .def_property_readonly("taken", &Optimizer::taken)
      .def_property_readonly("known", &Optimizer::known);
}

}  // namespace fusedstep::bind
