// What a step tells its caller: fusedstep.StepReport and fusedstep.TensorReport.
#pragma once

#include "bind/step/engine.h"

namespace fusedstep::bind {

// `lrs`, of the groups; `clips`, whether max_grad_norm was given; `params`, how many there are, with a gradient or
// without; `items`, those with one, as the telemetry has them.
struct ReportFacts {
  std::int64_t step;
  std::vector<double> lrs;
  bool clips;
  std::size_t params;
  const std::vector<Item>& items;
};
py::object make_report(const Outcome& outcome, const ReportFacts& facts);

void register_report(py::module_& m);

}  // namespace fusedstep::bind
