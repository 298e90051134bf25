// Making the states that a parameter does not have yet.
#pragma once

#include "bind/step/work.h"

namespace fusedstep::bind {

// Makes the missing states, averages and master weights of all items, stored as the tensors' arguments say.
void make_states(const runtime::Rule& rule, StepWork& work);

}  // namespace fusedstep::bind
