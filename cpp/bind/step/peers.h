// The other processes of a step whose tensors are parts of larger ones.
#pragma once

#include <vector>

#include "bind/step/item.h"

namespace fusedstep::bind {

class Peers {
 public:
  // add(places, sums) -> sums: of the parameters at these places of the step, each a list of pairs (value, exponent);
  // over all parts.
  explicit Peers(py::function add) : add_(std::move(add)) {}

  // The first `count` of each item's kStepSums sums. Asks all peers, so each of them must ask.
  void add_up(const std::vector<Item>& items, std::vector<double>& sums, std::vector<int>& exponents, int count) const;

  const py::function& add() const { return add_; }

 private:
  py::function add_;
};

}  // namespace fusedstep::bind
