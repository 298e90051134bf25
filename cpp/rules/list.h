// The one list of rules. Everything else (kernels, bindings, benches, tests) follows from it.
#pragma once

#include "rules/adam.h"
#include "rules/adamw.h"
#include "rules/rmsprop.h"
#include "rules/sgd.h"

namespace fusedstep::FUSEDSTEP_SET {

using Rules = RuleList<Sgd, Adam, AdamW, RmsProp>;

}  // namespace fusedstep::FUSEDSTEP_SET
