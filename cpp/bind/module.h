#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

void register_exchange(pybind11::module_& m);
void register_memory(pybind11::module_& m);
// For a class: `__new__` runs `__init__` too, so that no object lacks its native half.
pybind11::custom_type_setup whole_from_birth();

// Gives the submodule `testing`, which families add to.
pybind11::module_ register_testing(pybind11::module_& m);
void register_runtime(pybind11::module_& m);
void register_optimizer(pybind11::module_& m);
void register_functional(pybind11::module_& m);
void register_commit(pybind11::module_& m);
void register_batch_norm(pybind11::module_& m);
void register_losses(pybind11::module_& m);
void register_dropout(pybind11::module_& m);
void register_gather(pybind11::module_& m);
void register_roofs(pybind11::module_& m);
void register_tensors(pybind11::module_& m);
void register_vectors(pybind11::module_& m);
void register_kernel_testing(pybind11::module_& testing);

}  // namespace fusedstep::bind
