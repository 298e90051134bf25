// The groups of an optimizer: plain Python objects, which a user may have changed since the last step.
#pragma once

#include <vector>

#include "bind/step/engine.h"

namespace fusedstep::bind {

// The settings of all groups. May call schedules, which are Python's and may do anything: nothing is held across it.
// `scalar_names`, those of the rule's shared scalars, which stand in the groups; `last_lrs`, of the last step.
void read_groups(const Engine& engine, const py::list& groups, Schedules schedules, std::int64_t taken,
                 const std::vector<double>& last_lrs, const std::vector<py::object>& scalar_names,
                 std::vector<Settings>& settings);
// Their lists of parameters and names, as they were read. TypeError, ValueError.
void check_groups(const py::list& groups, const std::vector<Settings>& settings);
// How many parameters a group has that check_groups has seen.
inline py::ssize_t params_in(const Settings& settings) { return PyList_GET_SIZE(settings.params.ptr()); }
// What was given as params must still hold the same: where an entry of a dict was replaced, the old array would go on
// being trained, and nobody would look at it. `given`, per group, is a fusedstep._common.structure.Given.
void check_containers(const py::list& given, std::size_t groups);

}  // namespace fusedstep::bind
