// The native half of an optimizer and of the functions of fusedstep.functional: from Python's structures to items.
#include <pybind11/native_enum.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "bind/memory.h"
#include "bind/module.h"
#include "bind/step/engine.h"
#include "bind/step/report.h"

namespace fusedstep::bind {
namespace {

py::object hold(py::handle object) { return py::reinterpret_borrow<py::object>(object); }

struct Names {
  py::handle params = PyUnicode_InternFromString("params");
  py::handle param_names = PyUnicode_InternFromString("param_names");
  py::handle step = PyUnicode_InternFromString("step");
  py::handle ema = PyUnicode_InternFromString("ema");
  py::handle master = PyUnicode_InternFromString("master");
};

const Names& names() {
  static const Names all;
  return all;
}

bool is_codes(const py::object& state) {
  return state && is_array(state) &&
         py::reinterpret_borrow<py::dtype>(py::detail::array_proxy(state.ptr())->descr).itemsize() == 1;
}

void fetch_object(const py::object& object) {
  if (!object) return;
  __builtin_prefetch(object.ptr());
  __builtin_prefetch(reinterpret_cast<const char*>(object.ptr()) + 64);
}

// The keys and values of a small dict lie next to each other.
void fetch_entry(const py::object& entry) {
  if (!entry || !PyDict_Check(entry.ptr())) return;
  const char* keys = reinterpret_cast<const char*>(reinterpret_cast<const PyDictObject*>(entry.ptr())->ma_keys);
  for (int line = 0; line < 3; ++line) __builtin_prefetch(keys + 64 * line);
}

// How the parameters were given: the gradients come the same way.
enum class Structure { array, list, dict, groups };

class Optimizer {
 public:
  Optimizer(const std::string& rule, Structure structure, std::int64_t taken)
      : engine_(rule, Naming::optimizer), structure_(structure), taken_(taken) {
    if (taken < 0 || taken >= kMaxSteps) value_error({"step"}, "expected a count >= 0, got " + std::to_string(taken));
    const auto intern = [](const char* name) {
      return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name));
    };
    for (const char* name : engine_.rule().states) state_names_.push_back(intern(name));
    for (int s = 0; s < engine_.states(); ++s) scales_names_.push_back(intern(engine_.scales_name(s).c_str()));
    for (const char* name : engine_.rule().scalars) scalar_names_.push_back(intern(name));
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
  void check(py::list groups) {
    const Turn turn(*this, std::move(groups), py::dict());
    read_groups(Schedules::skip);
    check_groups();
    std::vector<py::handle> params;
    for (const py::handle group : py::reinterpret_borrow<py::list>(groups_)) {
      for (const py::handle param : get(group, names().params)) params.push_back(param);
    }
    known_ = engine_.check_params(params);
  }

  // `given`: per group, its parameters as they were given.
  py::object step(py::list groups, py::dict state, const py::list& given, py::handle grads, py::handle grad_scale) {
    const Turn turn(*this, std::move(groups), std::move(state));
    const double scale = number(grad_scale, "grad_scale");
    if (taken_ + 1 >= kMaxSteps) value_error({"step"}, "expected fewer than 2^53 steps, got " + std::to_string(taken_));
    read_groups(Schedules::ask);
    check_groups();
    check_containers(given);
    flatten(grads, given);
    collect_items();
    engine_.view(items_);
    for (Item& item : items_) {
      collect_state(item);
      check_geometry(item);
      engine_.view_states(item);
    }
    read_shared();
    Ledger ledger;
    py::object made;
    const auto settle = [&](const Outcome& known) {
      enter(ledger);
      if (known.measured || !settings_[0].whole.telemetry) made = report(known, taken_ + 1);
    };
    const auto taken = [&] {
      ++taken_;
      last_lr_.clear();
      for (const Settings& settings : settings_) last_lr_.push_back(engine_.lr_of(settings));
      ledger.keep();
      tell_owners();
    };
    try {
      const Outcome& outcome = engine_.run(items_, settings_, shared_, scale, std::ref(settle));
      if (!outcome.skipped) taken();
      return made ? made : report(outcome, taken_);
    } catch (...) {
      if (engine_.written() && !ledger.empty()) taken();
      throw;
    }
  }

 private:
  // One call at a time: the workspace is shared, and a schedule, or another thread while this one computes, may call.
  class Turn {
   public:
    Turn(Optimizer& optimizer, py::list groups, py::dict state) : optimizer_(optimizer) {
      if (optimizer_.busy_) throw std::runtime_error("step: this optimizer is in the middle of a step");
      optimizer_.busy_ = true;
      optimizer_.groups_ = std::move(groups);
      optimizer_.state_ = std::move(state);
      optimizer_.engine_.name_after(optimizer_.groups_);
    }
    ~Turn() {
      optimizer_.engine_.name_after({});
      optimizer_.items_.clear();
      optimizer_.flat_ = {};
      // Held only meanwhile: the garbage collector cannot see what a native object holds.
      optimizer_.groups_ = {};
      optimizer_.state_ = {};
      optimizer_.busy_ = false;
    }

   private:
    Optimizer& optimizer_;
  };

  // May call schedules, which are Python's and may do anything: nothing is held across it.
  void read_groups(Schedules schedules) {
    settings_.clear();
    for (py::ssize_t g = 0; g < PyList_GET_SIZE(groups_.ptr()); ++g) {
      const py::object group = hold(PyList_GET_ITEM(groups_.ptr(), g));
      if (!PyDict_Check(group.ptr())) type_error({"param_groups", g}, "expected a dict, got " + kind_text(group));
      const double last = std::size_t(g) < last_lr_.size() ? last_lr_[std::size_t(g)] : NAN;
      settings_.push_back(engine_.read(group, schedules, taken_, last));
      refuse_unknown(group, g, settings_.back().keys);
      agree(settings_[0], settings_.back());
    }
  }

  // A key that nothing reads would be ignored. Where there are as many keys as were found, all are known.
  void refuse_unknown(py::handle group, py::ssize_t index, py::ssize_t found) const {
    ++found;  // "params", which check_groups asks for
    if (PyDict_GET_SIZE(group.ptr()) == found) return;
    found += get(group, names().param_names) ? 1 : 0;
    if (engine_.rule().shared_scalars) {
      for (const py::object& name : scalar_names_) found += get(group, name) ? 1 : 0;
    }
    if (PyDict_Size(group.ptr()) != found) {
      py::module_::import("fusedstep.optimizers.base").attr("refuse_unknown")(engine_.rule().name, group, index);
    }
  }

  // What holds for all groups together.
  void agree(const Settings& first, const Settings& other) const {
    const WholeStep &a = first.whole, &b = other.whole;
    const char* differs = nullptr;
    // A step size that all parameters share follows from the hyper-parameters of all.
    if (engine_.rule().shared_scalars) {
      int at = 0;
      for (const Field& field : engine_.rule().fields) {
        const std::string name = field.name;
        for (int k = 0; k < field.count; ++k, ++at) {
          const double x = first.hypers[at], y = other.hypers[at];
          const bool same = x == y || (x != x && y != y);
          if (!same && name != "lr" && name != "eps" && name != "weight_decay") differs = field.name;
        }
      }
    }
    if (a.clip != b.clip || (a.clip && a.max_grad_norm != b.max_grad_norm)) differs = "max_grad_norm";
    if (a.skip_nonfinite != b.skip_nonfinite) differs = "skip_nonfinite";
    if (a.telemetry != b.telemetry) differs = "telemetry";
    if (differs != nullptr) value_error({differs}, "holds for the whole step: expected the same in all groups");
  }

  // Groups are plain Python objects: what a user made of them since is seen here.
  void check_groups() const {
    if (settings_.empty() || PyList_GET_SIZE(groups_.ptr()) != py::ssize_t(settings_.size())) {
      value_error({"param_groups"}, "expected at least one group, and as many after a schedule is asked as before");
    }
    for (py::ssize_t g = 0; g < PyList_GET_SIZE(groups_.ptr()); ++g) {
      const py::handle group = PyList_GET_ITEM(groups_.ptr(), g);
      const py::handle params = get(group, names().params), keys = get(group, names().param_names);
      if (!params || !PyList_Check(params.ptr())) type_error({"param_groups", g, "params"}, "expected a list");
      if (!keys) continue;
      if (!PyList_Check(keys.ptr())) type_error({"param_groups", g, "param_names"}, "expected a list");
      if (PyList_GET_SIZE(keys.ptr()) != PyList_GET_SIZE(params.ptr())) {
        value_error({"param_groups", g, "param_names"}, "expected " + std::to_string(PyList_GET_SIZE(params.ptr())) +
                                                            " names, one per parameter, got " +
                                                            std::to_string(PyList_GET_SIZE(keys.ptr())));
      }
    }
  }

  // What was given as params must still hold the same: where an entry of a dict was replaced, the old array would go on
  // being trained, and nobody would look at it. Each is a fusedstep._common.structure.Given.
  void check_containers(const py::list& given) const {
    if (given.size() != settings_.size()) {
      value_error({"param_groups"}, "expected " + std::to_string(given.size()) +
                                        ", which add_param_group adds to, got " + std::to_string(settings_.size()));
    }
    for (const py::handle one : given) {
      const py::handle objects = PyTuple_GET_ITEM(one.ptr(), 0), keys = PyTuple_GET_ITEM(one.ptr(), 1);
      const py::handle container = PyTuple_GET_ITEM(one.ptr(), 2);
      if (container.is_none()) continue;
      const py::ssize_t count = PyList_GET_SIZE(objects.ptr());
      bool same = false;
      if (PyList_Check(container.ptr())) {
        same = PyList_GET_SIZE(container.ptr()) == count;
        for (py::ssize_t k = 0; same && k < count; ++k) {
          same = PyList_GET_ITEM(container.ptr(), k) == PyList_GET_ITEM(objects.ptr(), k);
        }
      } else if (PyDict_Check(container.ptr())) {
        same = PyDict_GET_SIZE(container.ptr()) == count;
        PyObject *key, *value;
        py::ssize_t place = 0;
        for (py::ssize_t k = 0; same && PyDict_Next(container.ptr(), &place, &key, &value) != 0; ++k) {
          same = key == PyList_GET_ITEM(keys.ptr(), k) && value == PyList_GET_ITEM(objects.ptr(), k);
        }
      }
      // Looks again, at what is no plain list or dict, or in another order, and says what is different.
      if (!same) py::module_::import("fusedstep._common.structure").attr("refuse_orphans")(one);
    }
  }

  py::ssize_t params_in(py::handle group) const { return PyList_GET_SIZE(get(group, names().params).ptr()); }

  void append_list(py::handle grads, py::ssize_t expected, const char* role) {
    if (!is_sequence(grads)) {
      type_error({role}, "expected a list of " + std::to_string(expected) + " arrays, got " + kind_text(grads));
    }
    const py::ssize_t got = PySequence_Fast_GET_SIZE(grads.ptr());
    if (got != expected) {
      value_error({role}, "expected " + std::to_string(expected) +
                              " arrays (one per parameter, None to leave one out), got " + std::to_string(got));
    }
    for (py::ssize_t k = 0; k < got; ++k) grads_.push_back(PySequence_Fast_GET_ITEM(grads.ptr(), k));
  }

  void append_dict(py::handle grads, py::handle group) {
    const py::handle keys = get(group, names().param_names);
    if (!PyDict_Check(grads.ptr())) {
      type_error({"grads"}, "expected a dict with the parameters' names, got " + kind_text(grads));
    }
    for (const py::handle key : keys) {
      const py::handle grad = get(grads, key);
      if (!grad) {
        value_error({"grads"}, "no gradient for " + shown(key) + " (give None to leave it out)");
      }
      grads_.push_back(grad);
    }
    if (PyDict_Size(grads.ptr()) != PyObject_Length(keys.ptr())) {
      for (const auto& item : py::reinterpret_borrow<py::dict>(grads)) {
        if (PySequence_Contains(keys.ptr(), item.first.ptr()) == 0) {
          value_error({"grads"}, shown(item.first) + " is not the name of a parameter");
        }
      }
    }
  }

  // Gradients in the structure of nested parameters, or of an iterator: as a list, which this holds.
  py::handle flat(py::handle grads, py::handle container) {
    static const py::handle structure = py::module_::import("fusedstep._common.structure").release();
    py::object list = structure.attr("flat_grads")(grads, container);
    if (!flat_) flat_ = py::list();
    PyList_Append(flat_.ptr(), list.ptr());
    return list;
  }
  static bool is_nested(py::handle container) {
    return !container.is_none() && !PyDict_Check(container.ptr()) && !PyList_Check(container.ptr());
  }

  // One group's gradients, in the form that its parameters were given in.
  void append_group(py::handle grads, py::handle group, py::handle container) {
    if (is_nested(container)) grads = flat(grads, container);
    if (get(group, names().param_names) && PyDict_Check(grads.ptr())) return append_dict(grads, group);
    const py::ssize_t expected = params_in(group);
    if (expected == 1 && !is_sequence(grads)) {
      grads_.push_back(grads);
    } else {
      append_list(grads, expected, "grads");
    }
  }

  static py::handle container_of(const py::list& given, py::ssize_t group) {
    return PyTuple_GET_ITEM(PyList_GET_ITEM(given.ptr(), group), 2);
  }

  // An iterator, or a view of a dict; no array.
  static bool is_iterable(py::handle grads) {
    if (is_sequence(grads) || PyDict_Check(grads.ptr()) || is_array(grads) || PyUnicode_Check(grads.ptr()))
      return false;
    return py::hasattr(grads, "__iter__") && !py::hasattr(grads, "__array__") && !py::hasattr(grads, "keys");
  }

  void flatten(py::handle grads, const py::list& given) {
    grads_.clear();
    const py::handle first = PyList_GET_ITEM(groups_.ptr(), 0);
    if (structure_ != Structure::array && is_iterable(grads)) grads = flat(grads, py::none());
    switch (structure_) {
      case Structure::array:
        grads_.push_back(grads);
        break;
      case Structure::list:
      case Structure::dict: {
        const py::handle container = container_of(given, 0);
        if (is_nested(container)) {
          append_list(flat(grads, container), params_in(first), "grads");
        } else if (structure_ == Structure::dict) {
          append_dict(grads, first);
        } else if (get(first, names().param_names) && PyDict_Check(grads.ptr())) {
          append_dict(grads, first);
        } else {
          append_list(grads, params_in(first), "grads");
        }
        break;
      }
      case Structure::groups: {
        py::ssize_t all = 0;
        for (const py::handle group : py::reinterpret_borrow<py::list>(groups_)) all += params_in(group);
        bool nested = false;
        if (is_sequence(grads) && PySequence_Fast_GET_SIZE(grads.ptr()) == PyList_GET_SIZE(groups_.ptr())) {
          for (const py::handle part : grads) nested = nested || is_sequence(part) || PyDict_Check(part.ptr());
        }
        if (!nested) {
          append_list(grads, all, "grads");
        } else {
          for (py::ssize_t k = 0; k < PyList_GET_SIZE(groups_.ptr()); ++k) {
            append_group(PySequence_Fast_GET_ITEM(grads.ptr(), k), PyList_GET_ITEM(groups_.ptr(), k),
                         container_of(given, k));
          }
        }
      }
    }
  }

  void collect_items() {
    std::size_t all = 0;
    for (py::ssize_t g = 0; g < PyList_GET_SIZE(groups_.ptr()); ++g) {
      all += std::size_t(params_in(PyList_GET_ITEM(groups_.ptr(), g)));
    }
    if (grads_.size() != all) {
      value_error({"grads"}, "expected " + std::to_string(all) + " arrays, got " + std::to_string(grads_.size()));
    }
    items_.clear();
    items_.reserve(all);
    py::ssize_t index = 0;
    for (py::ssize_t g = 0; g < PyList_GET_SIZE(groups_.ptr()); ++g) {
      const py::handle params = get(PyList_GET_ITEM(groups_.ptr(), g), names().params);
      for (py::ssize_t k = 0; k < PyList_GET_SIZE(params.ptr()); ++k, ++index) {
        const py::handle grad = grads_[std::size_t(index)];
        if (grad.is_none()) continue;
        Item& item = items_.emplace_back();
        item.group = int(g);
        item.index = index;
        item.owner = hold(PyList_GET_ITEM(params.ptr(), k));
        item.grad = hold(grad);
        item.entry = hold(get(state_, index_key(index)));
        // The last step has pushed Python's objects out of the caches.
        fetch_object(item.owner);
        fetch_object(item.grad);
        fetch_object(item.entry);
      }
    }
    for (const Item& item : items_) fetch_entry(item.entry);
  }

  // Memory that moved is followed; another shape or dtype is another parameter. Where the axes lie in another order
  // now, so do the states.
  void check_geometry(Item& item) {
    if (std::size_t(item.index) >= known_.size()) value_error({"params", item.index}, "add a group by add_param_group");
    Geometry& known = known_[std::size_t(item.index)];
    // Somebody has put another one into the group.
    if (!known.owner.is(item.owner)) known = geometry_of(item.owner, item.param, {"params", item.index});
    const auto* a = py::detail::array_proxy(item.param.ptr());
    const Label label = {"params", item.index, nullptr, groups_.ptr()};
    const bool shaped = std::equal(known.shape.begin(), known.shape.end(), a->dimensions, a->dimensions + a->nd);
    if (!shaped || a->descr != known.descr.ptr()) {
      const Geometry now = geometry_of(item.owner, item.param, label);
      if (!shaped || now.dtype != known.dtype) {
        value_error(label, "is of shape " + shape_text(item.param) + " and " + dtype_text(item.param) +
                               ", and was of " + known.text() +
                               " when it was given; opt.rebind(params) takes it as it is now");
      }
    }
    if (std::equal(known.strides.begin(), known.strides.end(), a->strides, a->strides + a->nd)) return;
    if (item.entry) {
      static const py::handle states = py::module_::import("fusedstep.optimizers.base.states").release();
      const py::object relaid = states.attr("relaid")(engine_.rule().name, item.entry, item.param);
      if (PyDict_SetItem(state_.ptr(), index_key(item.index).ptr(), relaid.ptr()) != 0) throw py::error_already_set();
      item.entry = relaid;
      collect_state(item);
    }
    known = geometry_of(item.owner, item.param, label);
  }

  void tell_owners() const {
    std::vector<py::handle> written;
    for (const Item& item : items_) {
      if (!is_array(item.owner) || py::detail::array_proxy(item.owner.ptr())->base != nullptr) {
        written.push_back(item.owner);
      }
    }
    if (!written.empty()) wrote(written);
  }

  void collect_state(Item& item) const {
    const Settings& settings = settings_[std::size_t(item.group)];
    item.variant = engine_.variant_for(settings, item.param);
    item.first = !item.entry;
    item.step = 1;
    for (int s = 0; s < own_scalars(); ++s) {
      item.scalars[s] = engine_.rule().initial_scalar(settings.hypers, s);
    }
    if (!item.entry) return;
    if (!PyDict_Check(item.entry.ptr())) {
      type_error({"state", item.index}, "expected a dict, got " + kind_text(item.entry));
    }
    item.first = settings.anew;
    for (int s = 0; s < engine_.states() && !settings.anew; ++s) {
      if (!engine_.keeps(item, s)) continue;
      item.state[s] = hold(get(item.entry, state_names_[std::size_t(s)]));
      item.first = item.first || !item.state[s];
      fetch_object(item.state[s]);
      if (is_codes(item.state[s])) item.scales[s] = hold(get(item.entry, scales_names_[std::size_t(s)]));
    }
    for (int s = 0; s < own_scalars(); ++s) {
      const py::handle given = get(item.entry, scalar_names_[std::size_t(s)]);
      if (given) item.scalars[s] = scalar(given, {"state", item.index, engine_.rule().scalars[std::size_t(s)]});
    }
    if (settings.average) item.ema = hold(get(item.entry, names().ema));
    if (settings.master) item.master = hold(get(item.entry, names().master));
    const py::handle step = get(item.entry, names().step);
    item.step = (step ? whole_number(step, {"state", item.index, "step"}, 0, kMaxSteps - 1) : 0) + 1;
  }

  py::handle index_key(py::ssize_t index) {
    while (py::ssize_t(index_keys_.size()) <= index) index_keys_.push_back(py::int_(index_keys_.size()));
    return index_keys_[std::size_t(index)];
  }

  // Scalars that a parameter keeps itself.
  int own_scalars() const { return engine_.rule().shared_scalars ? 0 : engine_.scalars(); }

  // May be infinite or NaN, as what the gradients made of the parameters may.
  static double scalar(py::handle value, const Label& label) {
    if (PyFloat_CheckExact(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
    return number(value, label.text().c_str());
  }

  // They stand in the groups, the same in all; the first one's hold.
  void read_shared() {
    if (!engine_.rule().shared_scalars) return;
    for (int s = 0; s < engine_.scalars(); ++s) {
      const py::handle given = get(PyList_GET_ITEM(groups_.ptr(), 0), scalar_names_[std::size_t(s)]);
      shared_[s] = given && !given.is_none()
                       ? scalar(given, {"param_groups", 0, engine_.rule().scalars[std::size_t(s)]})
                       : engine_.rule().initial_scalar(settings_[0].hypers, s);
    }
  }

  // What the state and the groups hold after this step.
  void enter(Ledger& ledger) {
    const auto put = [&](py::handle dict, py::handle key, py::handle value) { ledger.put(dict, key, value); };
    py::int_ step(0);
    std::int64_t value = 0;
    for (Item& item : items_) {
      if (!item.entry) {
        item.entry = py::dict();
        put(state_, index_key(item.index), item.entry);
      }
      if (item.step != value) {
        value = item.step;
        step = py::int_(value);
      }
      put(item.entry, names().step, step);
      if (item.first) {
        for (int s = 0; s < engine_.states(); ++s) {
          if (!engine_.keeps(item, s)) continue;
          put(item.entry, state_names_[std::size_t(s)], item.state[s]);
          if (item.scales[s]) put(item.entry, scales_names_[std::size_t(s)], item.scales[s]);
        }
      }
      for (int s = 0; s < own_scalars(); ++s) {
        put(item.entry, scalar_names_[std::size_t(s)], py::float_(item.advanced[s]));
      }
      if (item.ema_made) put(item.entry, names().ema, item.ema);
      if (item.master_made) put(item.entry, names().master, item.master);
    }
    if (!engine_.rule().shared_scalars) return;
    for (const py::handle group : py::reinterpret_borrow<py::list>(groups_)) {
      for (int s = 0; s < engine_.scalars(); ++s) put(group, scalar_names_[std::size_t(s)], py::float_(shared_[s]));
    }
  }

  py::object report(const Outcome& outcome, std::int64_t taken) const {
    std::vector<double> lrs;
    for (const Settings& settings : settings_) lrs.push_back(engine_.lr_of(settings));
    return make_report(outcome, {taken, std::move(lrs), settings_[0].whole.clip, grads_.size(), items_});
  }

  Engine engine_;
  py::object groups_, state_;
  Structure structure_;
  std::int64_t taken_;
  bool busy_ = false;
  std::vector<py::object> state_names_, scales_names_, scalar_names_, index_keys_;
  double shared_[kMaxScalars] = {};
  // Reused from step to step.
  std::vector<Geometry> known_;
  std::vector<double> last_lr_;  // of the last step's groups
  std::vector<Settings> settings_;
  std::vector<py::handle> grads_;
  py::object flat_;  // lists that grads_ points into
  std::vector<Item> items_;
};

// An engine for one call of a function, kept for the next: nested and concurrent calls get others. The GIL guards it.
class Lease {
 public:
  explicit Lease(const std::string& rule) : idle_(idle()[rule]) {
    if (idle_.empty()) {
      engine_ = std::make_unique<Engine>(rule, Naming::function);
    } else {
      engine_ = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  ~Lease() { idle_.push_back(std::move(engine_)); }
  Engine& operator*() const { return *engine_; }

 private:
  using Idle = std::vector<std::unique_ptr<Engine>>;
  // Never destroyed: Python may be gone by then.
  static std::map<std::string, Idle>& idle() {
    static auto* all = new std::map<std::string, Idle>;
    return *all;
  }
  Idle& idle_;
  std::unique_ptr<Engine> engine_;
};

// Scalars of a rule, as functions take them: arrays of one float64, which move on in place.
double* scalar_of(py::handle array, const Label& label) {
  const Array inspected = inspect(array, label);
  if (inspected.dtype != Dtype::float64 || inspected.size != 1) {
    value_error(label,
                "expected a float64 array of one element, got shape " + shape_text(array) + " of " + dtype_text(array));
  }
  require_writable(array, label);
  return reinterpret_cast<double*>(inspected.data);
}

// fusedstep.functional: one array of each kind, or equal-length lists of them. `states` holds the scalars behind them.
void apply(const std::string& rule, py::handle params, py::handle grads, const py::tuple& states, py::handle step,
           const py::dict& hypers, py::handle grad_scale) {
  const Lease lease(rule);
  Engine& engine = *lease;
  const bool listed = is_sequence(params);
  const std::size_t count = listed ? py::len(params) : 1;
  const auto pick = [&](py::handle given, const char* name, std::size_t k) {
    if (!listed) return given;
    if (!is_sequence(given) || py::len(given) != count) {
      value_error({name}, "expected a list of " + std::to_string(count) + " as param is, got " +
                              (is_sequence(given) ? std::to_string(py::len(given)) : kind_text(given)));
    }
    return py::handle(PySequence_Fast_GET_ITEM(given.ptr(), py::ssize_t(k)));
  };
  const std::vector<Settings> settings = {engine.read(hypers, Schedules::refuse, 0)};
  const runtime::Rule& r = engine.rule();
  const std::size_t first_scalar = r.states.size();
  std::vector<Item> items(count);
  for (std::size_t k = 0; k < count; ++k) {
    Item& item = items[k];
    item.index = listed ? py::ssize_t(k) : -1;
    item.owner = hold(pick(params, "param", k));
    item.grad = hold(pick(grads, "grad", k));
  }
  engine.view(items);
  for (std::size_t k = 0; k < count; ++k) {
    Item& item = items[k];
    item.variant = engine.variant_for(settings[0], item.param);
    for (int s = 0; s < engine.states(); ++s) {
      if (!engine.keeps(item, s)) continue;
      const char* name = r.states[std::size_t(s)];
      item.state[s] = hold(pick(states[std::size_t(s)], name, k));
      if (item.state[s].is_none())
        value_error({name, item.index}, "expected an array with these hyper-parameters, got None");
      if (PyTuple_Check(item.state[s].ptr())) {
        const auto pair = py::reinterpret_borrow<py::tuple>(item.state[s]);
        if (pair.size() != 2) value_error({name, item.index}, "expected an array, or a pair (codes, scales)");
        item.state[s] = pair[0];
        item.scales[s] = pair[1];
      }
    }
    if (!r.shared_scalars) {
      for (std::size_t s = 0; s < r.scalars.size(); ++s) {
        item.scalar_array[s] = hold(pick(states[first_scalar + s], r.scalars[s], k));
        item.scalars[s] = *scalar_of(item.scalar_array[s], {r.scalars[s], item.index});
      }
    }
    item.step = is_sequence(step) ? whole_number(pick(step, "step", k), {"step", item.index}, 1)
                                  : whole_number(step, {"step"}, 1);
    item.first = item.step == 1;
  }
  double shared[kMaxScalars] = {};
  if (r.shared_scalars) {
    for (std::size_t s = 0; s < r.scalars.size(); ++s) {
      shared[s] = *scalar_of(states[first_scalar + s], {r.scalars[s]});
      if (count > 0) items[0].scalar_array[s] = hold(states[first_scalar + s]);
    }
  }
  std::vector<std::pair<double*, const double*>> scalars;
  const double scale = number(grad_scale, "grad_scale");
  for (Item& item : items) engine.view_states(item);
  engine.run(items, settings, shared, scale, [&](const Outcome&) {
    for (std::size_t s = 0; s < r.scalars.size(); ++s) {
      for (Item& item : items) {
        if (!item.scalar_array[s]) continue;
        const double* from = r.shared_scalars ? &shared[s] : &item.advanced[s];
        scalars.push_back({scalar_of(item.scalar_array[s], {r.scalars[s], item.index}), from});
      }
    }
  });
  for (const auto& [to, from] : scalars) *to = *from;
  std::vector<py::handle> written;
  for (const Item& item : items) {
    written.push_back(item.owner);
    for (const py::object& state : item.state) {
      if (state) written.push_back(state);
    }
  }
  wrote(written);
}

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
      .def("step", &Optimizer::step)
      .def("check", &Optimizer::check)
      .def_property_readonly("taken", &Optimizer::taken)
      .def_property_readonly("known", &Optimizer::known);
  m.def("apply", &apply);
  // Of a parameter of so many axes.
  m.def("variant", [](const std::string& rule, const py::dict& hypers, int axes) {
    const Engine engine(rule, Naming::function);
    const Settings settings = engine.read(hypers, Schedules::skip, 0);
    const int variant = engine.rule().variant_of(settings.hypers, axes);
    return variant < 0 ? settings.variant : variant;
  });
}

}  // namespace fusedstep::bind
