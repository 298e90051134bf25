// fusedstep._core.testing: what only the tests call.
#include <pybind11/stl.h>

#include "bind/module.h"
#include "runtime/quota.h"
#include "runtime/threads.h"

namespace fusedstep::bind {

pybind11::module_ register_testing(pybind11::module_& m) {
  pybind11::module_ testing = m.def_submodule("testing", "What only the tests call.");
  testing.def("force_parallel", &runtime::force_parallel);
  testing.def("processor_quota", &runtime::processor_quota);
  testing.def("usable_processors", &runtime::usable_processors);
  return testing;
}

}  // namespace fusedstep::bind
