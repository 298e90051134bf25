#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

void register_exchange(pybind11::module_& m);
void register_memory(pybind11::module_& m);
// Of a class: `__new__` runs `__init__`, and so gives no object without its native half.
pybind11::custom_type_setup whole_from_birth();

void register_runtime(pybind11::module_& m);
void register_optimizer(pybind11::module_& m);
void register_commit(pybind11::module_& m);
void register_batch_norm(pybind11::module_& m);
void register_layers(pybind11::module_& m);
void register_roofs(pybind11::module_& m);
void register_vectors(pybind11::module_& m);

}  // namespace fusedstep::bind
