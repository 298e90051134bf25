// The one list of rules. Everything else (kernels, bindings, benches, tests) follows from it.
#pragma once

#include "rules/adadelta.h"
#include "rules/adafactor.h"
#include "rules/adagrad.h"
#include "rules/adam.h"
#include "rules/adamax.h"
#include "rules/adamw.h"
#include "rules/adan.h"
#include "rules/ademamix.h"
#include "rules/adopt.h"
#include "rules/asgd.h"
#include "rules/lamb.h"
#include "rules/lars.h"
#include "rules/lion.h"
#include "rules/momentum.h"
#include "rules/muon.h"
#include "rules/nadam.h"
#include "rules/prodigy.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/rprop.h"
#include "rules/schedule_free_adamw.h"
#include "rules/sgd.h"
#include "rules/sparse_adam.h"

namespace fusedstep::FUSEDSTEP_SET {

using Rules = RuleList<Sgd, Momentum, Adagrad, RmsProp, Adadelta, Adam, AdamW, Adamax, NAdam, RAdam, SparseAdam, Asgd,
                       Rprop, Adafactor, Muon, Lion, Lamb, Lars, AdEMAMix, Adan, Adopt, ScheduleFreeAdamW, Prodigy>;

}  // namespace fusedstep::FUSEDSTEP_SET
