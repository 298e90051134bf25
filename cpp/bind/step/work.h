// One step between its checks and its report.
#pragma once

#include <vector>

#include "bind/commit.h"
#include "bind/step/item.h"
#include "bind/step/peers.h"
#include "bind/step/settings.h"
#include "runtime/step.h"
#include "runtime/whole_step.h"

namespace fusedstep::bind {

// What the checks found and the backends work on. Its memory is reused from step to step.
struct StepWork {
  // For one call.
  std::vector<Item>* items = nullptr;
  const std::vector<Settings>* groups = nullptr;
  double* shared = nullptr;  // the rule's shared scalars, which move on
  double grad_scale = 1.0;
  double clip_coefficient = 1.0;
  const Peers* peers = nullptr;  // who have the other parts of the items' tensors, if anybody

  std::vector<runtime::StepTensor> tensors;  // one an item
  runtime::Step step;
  // kStepSums an item: those of the gradients alone, then those of telemetry.
  std::vector<double> sums;
  std::vector<int> exponents;  // of these, or empty: all 0
  bool measured = false;       // the sums of telemetry are there

  std::vector<unsigned char> coefficients;  // native: kMaxCoefficientBytes an item
  std::vector<py::object> before;           // native, with telemetry: parameters of float64 before the step
  Writes writes;                            // NumPy

  void begin(std::vector<Item>& all, const std::vector<Settings>& settings, double* scalars, double scale,
             const Peers* others) {
    items = &all;
    groups = &settings;
    shared = scalars;
    grad_scale = scale;
    peers = others;
    clip_coefficient = 1.0;
    tensors.assign(all.size(), {});
    exponents.clear();
    measured = false;
  }
  // Lets go of arrays; the items, settings and scalars are the caller's.
  void end() {
    before.clear();
    writes.clear();
  }
  const Settings& settings(const Item& item) const { return (*groups)[std::size_t(item.group)]; }
  // Elements of an item's tensor, here and elsewhere.
  std::int64_t whole_size(std::size_t k) const {
    const Part& part = (*items)[k].part;
    return part.whole < 0 ? tensors[k].size : part.whole;
  }
  // The first `count` sums of each item, over the parts of all peers.
  void add_up(int count) {
    if (peers != nullptr) peers->add_up(*items, sums, exponents, count);
  }
  bool telemetry() const { return (*groups)[0].whole.telemetry; }
  runtime::Ranged sum(std::size_t item, int which) const {
    const std::size_t at = item * kStepSums + std::size_t(which);
    return {sums[at], exponents.empty() ? 0 : exponents[at]};
  }
};

}  // namespace fusedstep::bind
