// The NumPy reference of a step, as both backends call it: fusedstep.reference.step and .whole_step.
#pragma once

#include "bind/step/work.h"

namespace fusedstep::bind {

// A tensor of the step as the reference takes it.
py::dict describe(const runtime::Rule& rule, const StepWork& work, std::size_t k);

// Sums of doubles that went out of range, taken anew: a gradient's squares, all of telemetry, the sums of a rule's
// measure, their roots.
std::vector<runtime::Ranged> reference_squares(const Item& item, double squares);
std::vector<runtime::Ranged> reference_telemetry(const runtime::Rule& rule, const Item& item, const py::object& before,
                                                 const double* sums);
std::vector<runtime::Ranged> reference_measures(const runtime::Rule& rule, const StepWork& work, std::size_t k);
std::vector<double> reference_norms(const runtime::Rule& rule, const StepWork& work, std::size_t k);

}  // namespace fusedstep::bind
