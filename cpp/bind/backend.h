// The instruction sets as the binding sees them. NumPy, the reference, is one of them: what each family of functions
// computes is an interface with two implementations, one that holds a table of kernels and one that calls
// fusedstep.reference. No other file asks which set is active.
//
// A family adds: its interface and the two factories beside its bindings (step/backend.h), and a line below.
#pragma once

#include <memory>

#include "bind/batch_norm/backend.h"
#include "bind/dropout/backend.h"
#include "bind/losses/backend.h"
#include "bind/step/backend.h"
#include "bind/vectors/backend.h"

namespace fusedstep::bind {

struct Backends {
  std::unique_ptr<const StepBackend> step;
  std::unique_ptr<const BatchNormBackend> batch_norm;
  std::unique_ptr<const LossBackend> losses;
  std::unique_ptr<const DropoutBackend> dropout;
  std::unique_ptr<const VectorBackend> vectors;
};

// Those of the active set: to be asked once a call, for another thread may choose another set meanwhile.
const Backends& active_backends();
// The reference, for what has no kernels.
const Backends& numpy_backends();

// The kernels themselves, for what only native sets have; ValueError("isa: 'numpy' has no `what`").
const KernelTable& native_table(const char* what = "native kernels");

}  // namespace fusedstep::bind
