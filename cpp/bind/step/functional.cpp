// fusedstep.functional: a step of arrays whose states the caller keeps.
#include <map>
#include <memory>

#include "bind/memory.h"
#include "bind/module.h"
#include "bind/step/engine.h"

namespace fusedstep::bind {
namespace {

py::object hold(py::handle object) { return py::reinterpret_borrow<py::object>(object); }

// An engine for one call of a function, kept for the next: nested and concurrent calls get others. The GIL guards it.
class PooledEngine {
 public:
  explicit PooledEngine(const std::string& rule) : idle_(idle()[rule]) {
    if (idle_.empty()) {
      engine_ = std::make_unique<Engine>(rule, Naming::function);
    } else {
      engine_ = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  ~PooledEngine() { idle_.push_back(std::move(engine_)); }
  PooledEngine(const PooledEngine&) = delete;
  PooledEngine& operator=(const PooledEngine&) = delete;
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

// The arguments of one call: an array of each kind, or lists of them, as long as that of the parameters.
class Arguments {
 public:
  Arguments(const runtime::Rule& rule, py::handle params, py::handle grads, const py::tuple& states, py::handle step)
      : rule_(rule),
        params_(params),
        grads_(grads),
        step_(step),
        states_(states),
        listed_(is_sequence(params)),
        count_(listed_ ? py::len(params) : 1) {}

  std::vector<Item> items() const {
    std::vector<Item> all(count_);
    for (std::size_t k = 0; k < count_; ++k) {
      all[k].index = listed_ ? py::ssize_t(k) : -1;
      all[k].owner = hold(pick(params_, "param", k));
      all[k].grad = hold(pick(grads_, "grad", k));
    }
    return all;
  }

  // What stands beside the k-th parameter, whose variant is known.
  void read_states(Item& item, std::size_t k) const {
    for (std::size_t s = 0; s < rule_.states.size(); ++s) {
      if (keeps(rule_, item, int(s))) read_state(item, k, s);
    }
    for (std::size_t s = 0; s < rule_.scalars.size() && !rule_.shared_scalars; ++s) {
      item.scalar_array[s] = hold(pick(scalars(s), rule_.scalars[s], k));
      item.scalars[s] = *scalar_of(item.scalar_array[s], {rule_.scalars[s], item.index});
    }
    item.step = is_sequence(step_) ? whole_number(pick(step_, "step", k), {"step", item.index}, 1)
                                   : whole_number(step_, {"step"}, 1);
    item.first = item.step == 1;
  }

  // Scalars that all parameters share; the first item's arrays stand for them.
  void read_shared(std::vector<Item>& items, double* shared) const {
    for (std::size_t s = 0; s < rule_.scalars.size() && rule_.shared_scalars; ++s) {
      shared[s] = *scalar_of(scalars(s), {rule_.scalars[s]});
      if (!items.empty()) items[0].scalar_array[s] = hold(scalars(s));
    }
  }

 private:
  py::handle pick(py::handle given, const char* name, std::size_t k) const {
    if (!listed_) return given;
    if (!is_sequence(given) || py::len(given) != count_) {
      value_error({name}, "expected a list of " + std::to_string(count_) + " as param is, got " +
                              (is_sequence(given) ? std::to_string(py::len(given)) : kind_text(given)));
    }
    return PySequence_Fast_GET_ITEM(given.ptr(), py::ssize_t(k));
  }

  // They stand behind the states.
  py::handle scalars(std::size_t s) const { return PyTuple_GET_ITEM(states_.ptr(), rule_.states.size() + s); }

  void read_state(Item& item, std::size_t k, std::size_t s) const {
    const char* name = rule_.states[s];
    item.state[s] = hold(pick(PyTuple_GET_ITEM(states_.ptr(), s), name, k));
    if (item.state[s].is_none()) {
      value_error({name, item.index}, "expected an array with these hyper-parameters, got None");
    }
    if (!PyTuple_Check(item.state[s].ptr())) return;
    const auto pair = py::reinterpret_borrow<py::tuple>(item.state[s]);
    if (pair.size() != 2) value_error({name, item.index}, "expected an array, or a pair (codes, scales)");
    item.state[s] = pair[0];
    item.scales[s] = pair[1];
  }

  const runtime::Rule& rule_;
  const py::handle params_, grads_, step_;
  const py::tuple states_;
  const bool listed_;
  const std::size_t count_;
};

void tell_owners(const std::vector<Item>& items) {
  std::vector<py::handle> written;
  for (const Item& item : items) {
    written.push_back(item.owner);
    for (const py::object& state : item.state) {
      if (state) written.push_back(state);
    }
  }
  wrote(written);
}

// `states` holds the scalars behind the states.
void apply(const std::string& rule_name, py::handle params, py::handle grads, const py::tuple& states, py::handle step,
           const py::dict& hypers, py::handle grad_scale) {
  const PooledEngine pooled(rule_name);
  Engine& engine = *pooled;
  const runtime::Rule& rule = engine.rule();
  const std::vector<Settings> settings = {engine.read(hypers, Schedules::refuse, 0)};
  const Arguments arguments(rule, params, grads, states, step);
  std::vector<Item> items = arguments.items();
  engine.view(items);
  for (std::size_t k = 0; k < items.size(); ++k) {
    items[k].variant = engine.variant_for(settings[0], items[k].param);
    arguments.read_states(items[k], k);
  }
  double shared[kMaxScalars] = {};
  arguments.read_shared(items, shared);
  const double scale = number(grad_scale, "grad_scale");
  for (Item& item : items) engine.view_states(item);
  // The scalars are looked at once more before the step, and written behind it, where nothing can fail.
  std::vector<std::pair<double*, const double*>> scalars;
  engine.run(items, settings, shared, scale, [&](const Outcome&) {
    for (std::size_t s = 0; s < rule.scalars.size(); ++s) {
      for (Item& item : items) {
        if (!item.scalar_array[s]) continue;
        const double* from = rule.shared_scalars ? &shared[s] : &item.advanced[s];
        scalars.push_back({scalar_of(item.scalar_array[s], {rule.scalars[s], item.index}), from});
      }
    }
  });
  for (const auto& [to, from] : scalars) *to = *from;
  tell_owners(items);
}

// Of a parameter of so many axes.
int variant(const std::string& rule, const py::dict& hypers, int axes) {
  const Engine engine(rule, Naming::function);
  const Settings settings = engine.read(hypers, Schedules::skip, 0);
  const int found = engine.rule().variant_of(settings.hypers, axes);
  return found < 0 ? settings.variant : found;
}

}  // namespace

void register_functional(py::module_& m) {
  m.def("apply", &apply);
  m.def("variant", &variant);
}

}  // namespace fusedstep::bind
