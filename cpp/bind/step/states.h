// Making the states that a parameter does not have yet.
#pragma once

#include "bind/step/work.h"

namespace fusedstep::bind {

// The missing states, averages and master weights of all items, where the tensors' arguments say how they are stored.
void make_states(const runtime::Rule& rule, StepWork& work);

}  // namespace fusedstep::bind
