#include "bind/step/peers.h"

#include "kernels/abi/step.h"

namespace fusedstep::bind {

void Peers::add_up(const std::vector<Item>& items, std::vector<double>& sums, std::vector<int>& exponents,
                   int count) const {
  exponents.resize(sums.size(), 0);
  py::list places, given;
  for (std::size_t k = 0; k < items.size(); ++k) {
    places.append(items[k].index);
    py::list of_item;
    for (int s = 0; s < count; ++s) {
      const std::size_t at = k * kStepSums + std::size_t(s);
      of_item.append(py::make_tuple(sums[at], exponents[at]));
    }
    given.append(of_item);
  }
  const py::list added = add_(places, given);
  for (std::size_t k = 0; k < items.size(); ++k) {
    const py::list of_item = added[k];
    for (int s = 0; s < count; ++s) {
      const py::tuple pair = of_item[std::size_t(s)];
      const std::size_t at = k * kStepSums + std::size_t(s);
      sums[at] = pair[0].cast<double>();
      exponents[at] = pair[1].cast<int>();
    }
  }
}

}  // namespace fusedstep::bind
