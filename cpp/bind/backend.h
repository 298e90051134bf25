// The instruction sets as the binding sees them. NumPy, the reference, is one of them: what each family of functions
// computes is an interface with two implementations, one that holds a table of kernels and one that calls
// fusedstep.reference. No other file asks which set is active.
//
// A family adds: its interface and the two factories beside its bindings (step/backend.h), and a line below.
#pragma once

#include <memory>

#include "bind/step/backend.h"

namespace fusedstep::bind {

struct Backends {
  std::unique_ptr<const StepBackend> step;
};

// Those of the active set: to be asked once a call, for another thread may choose another set meanwhile.
const Backends& active_backends();
// The reference, for what has no kernels.
const Backends& numpy_backends();

// The kernels themselves, for what only native sets have; ValueError("isa: 'numpy' has no `what`").
const KernelTable& native_table(const char* what = "native kernels");

}  // namespace fusedstep::bind
