#include "bind/step/entries.h"

#include "bind/keys.h"

namespace fusedstep::bind {
namespace {

struct EntryKeys {
  py::handle step = PyUnicode_InternFromString("step");
  py::handle ema = PyUnicode_InternFromString("ema");
  py::handle master = PyUnicode_InternFromString("master");
};

const EntryKeys& entry_keys() {
  static const EntryKeys keys;
  return keys;
}

py::object hold(py::handle object) { return py::reinterpret_borrow<py::object>(object); }

// Codes come with scales.
bool is_codes(const py::object& state) {
  return state && is_array(state) && py::reinterpret_borrow<py::dtype>(descr_of(state)).itemsize() == 1;
}

// May be infinite or NaN, as what the gradients made of the parameters may.
double scalar(py::handle value, const Label& label) {
  if (PyFloat_CheckExact(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
  return number(value, label.text().c_str());
}

}  // namespace

StateEntries::StateEntries(const Engine& engine) : engine_(engine) {
  for (const char* name : engine.rule().states) state_names_.push_back(intern(name));
  for (int s = 0; s < engine.states(); ++s) scales_names_.push_back(intern(engine.scales_name(s).c_str()));
  for (const char* name : engine.rule().scalars) scalar_names_.push_back(intern(name));
  names_.push_back(hold(entry_keys().step));
  for (std::size_t s = 0; s < state_names_.size(); ++s) {
    names_.push_back(state_names_[s]);
    names_.push_back(scales_names_[s]);
  }
  for (int s = 0; s < own_scalars(); ++s) names_.push_back(scalar_names_[std::size_t(s)]);
  names_.push_back(hold(entry_keys().ema));
  names_.push_back(hold(entry_keys().master));
}

py::handle StateEntries::key(py::ssize_t index) {
  while (py::ssize_t(keys_.size()) <= index) keys_.push_back(py::int_(keys_.size()));
  return keys_[std::size_t(index)];
}

void StateEntries::read(const Settings& settings, Item& item) const {
  item.variant = engine_.variant_for(settings, item.param);
  item.first = !item.entry;
  item.step = 1;
  for (int s = 0; s < own_scalars(); ++s) item.scalars[s] = engine_.rule().initial_scalar(settings.hypers, s);
  if (!item.entry) return;
  if (!PyDict_Check(item.entry.ptr())) {
    type_error({"state", item.index}, "expected a dict, got " + kind_text(item.entry));
  }
  py::object scalars[kMaxScalars];
  py::handle values[1 + 2 * kMaxStates + kMaxScalars + 2];
  find_all(item.entry, names_, values);
  const py::handle* next = values;
  const py::handle step = *next++;
  item.first = settings.anew;
  for (int s = 0; s < engine_.states(); ++s, next += 2) {
    if (settings.anew || !engine_.keeps(item, s)) continue;
    item.state[s] = hold(next[0]);
    item.first = item.first || !item.state[s];
    if (is_codes(item.state[s])) item.scales[s] = hold(next[1]);
  }
  for (int s = 0; s < own_scalars(); ++s, ++next) scalars[s] = hold(*next);
  if (settings.average) item.ema = hold(next[0]);
  if (settings.master) item.master = hold(next[1]);
  read_numbers(item, hold(step), scalars);
}

// What is no array: reading it may run Python code.
void StateEntries::read_numbers(Item& item, const py::object& step, const py::object* scalars) const {
  for (int s = 0; s < own_scalars(); ++s) {
    if (scalars[s]) item.scalars[s] = scalar(scalars[s], {"state", item.index, engine_.rule().scalars[std::size_t(s)]});
  }
  item.step = (step ? whole_number(step, {"state", item.index, "step"}, 0, kMaxSteps - 1) : 0) + 1;
}

void StateEntries::read_shared(const py::list& groups, const Settings& first, double* shared) const {
  if (!engine_.rule().shared_scalars) return;
  for (int s = 0; s < engine_.scalars(); ++s) {
    const py::handle given = get(PyList_GET_ITEM(groups.ptr(), 0), scalar_names_[std::size_t(s)]);
    shared[s] = given && !given.is_none() ? scalar(given, {"param_groups", 0, engine_.rule().scalars[std::size_t(s)]})
                                          : engine_.rule().initial_scalar(first.hypers, s);
  }
}

void StateEntries::write(Ledger& ledger, py::handle state, std::vector<Item>& items) {
  py::int_ step(0);
  std::int64_t value = 0;
  for (Item& item : items) {
    if (!item.entry) {
      item.entry = py::dict();
      ledger.put(state, key(item.index), item.entry);
    }
    if (item.step != value) {
      value = item.step;
      step = py::int_(value);
    }
    ledger.put(item.entry, entry_keys().step, step);
    if (item.first) write_states(ledger, item);
    for (int s = 0; s < own_scalars(); ++s) {
      ledger.put(item.entry, scalar_names_[std::size_t(s)], py::float_(item.advanced[s]));
    }
    if (item.ema_made) ledger.put(item.entry, entry_keys().ema, item.ema);
    if (item.master_made) ledger.put(item.entry, entry_keys().master, item.master);
  }
}

void StateEntries::write_states(Ledger& ledger, const Item& item) const {
  for (int s = 0; s < engine_.states(); ++s) {
    if (!engine_.keeps(item, s)) continue;
    ledger.put(item.entry, state_names_[std::size_t(s)], item.state[s]);
    if (item.scales[s]) ledger.put(item.entry, scales_names_[std::size_t(s)], item.scales[s]);
  }
}

void StateEntries::write_shared(Ledger& ledger, const py::list& groups, const double* shared) const {
  if (!engine_.rule().shared_scalars) return;
  for (const py::handle group : groups) {
    for (int s = 0; s < engine_.scalars(); ++s) {
      ledger.put(group, scalar_names_[std::size_t(s)], py::float_(shared[s]));
    }
  }
}

}  // namespace fusedstep::bind
