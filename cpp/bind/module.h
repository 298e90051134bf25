#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep::bind {

void register_runtime(pybind11::module_& m);
void register_optimizer(pybind11::module_& m);
void register_commit(pybind11::module_& m);
void register_batch_norm(pybind11::module_& m);
void register_layers(pybind11::module_& m);
void register_roofs(pybind11::module_& m);
void register_vectors(pybind11::module_& m);

}  // namespace fusedstep::bind
