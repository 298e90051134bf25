// The state of an optimizer: a dict per parameter, by its position.
#pragma once

#include <vector>

#include "bind/commit.h"
#include "bind/step/engine.h"

namespace fusedstep::bind {

class StateEntries {
 public:
  explicit StateEntries(const Engine& engine);

  // An entry's key.
  py::handle key(py::ssize_t index);
  // The item's states and scalars, those of its entry or the initial ones. TypeError, ValueError.
  void read(const Settings& settings, Item& item) const;
  // Scalars that all parameters share: they stand in the groups, the same in all; the first one's hold.
  void read_shared(const py::list& groups, const Settings& first, double* shared) const;
  // What the state and the groups hold after this step.
  void write(Ledger& ledger, py::handle state, std::vector<Item>& items);
  void write_shared(Ledger& ledger, const py::list& groups, const double* shared) const;
  // Of the rule's scalars, shared or not.
  const std::vector<py::object>& scalar_names() const { return scalar_names_; }

 private:
  // Scalars that a parameter keeps itself.
  int own_scalars() const { return engine_.rule().shared_scalars ? 0 : engine_.scalars(); }
  void read_numbers(Item& item, const py::object& step, const py::object* scalars) const;
  void write_states(Ledger& ledger, const Item& item) const;

  const Engine& engine_;
  std::vector<py::object> state_names_, scales_names_, scalar_names_;
  std::vector<py::object> names_;  // of an entry, in the order in which write() makes them
  std::vector<py::object> keys_;
};

}  // namespace fusedstep::bind
