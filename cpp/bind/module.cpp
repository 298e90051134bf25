#include "bind/module.h"

#include "runtime/threads.h"

namespace fusedstep::bind {
namespace {

PyObject* new_and_init(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  PyObject* self = pybind11::detail::make_new_instance(type);
  // When Python calls __init__ afterwards, pybind11 sees that it has run, and does nothing.
  if (self != nullptr && type->tp_init(self, args, kwargs) != 0) Py_CLEAR(self);
  return self;
}

}  // namespace

pybind11::custom_type_setup whole_from_birth() {
  return pybind11::custom_type_setup([](PyHeapTypeObject* type) { type->ht_type.tp_new = new_and_init; });
}

}  // namespace fusedstep::bind

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native half of fusedstep.";
  fusedstep::runtime::watch_forks();
  pybind11::module_ testing = fusedstep::bind::register_testing(m);
  fusedstep::bind::register_runtime(m);
  fusedstep::bind::register_memory(m);
  fusedstep::bind::register_exchange(m);
  fusedstep::bind::register_optimizer(m);
  fusedstep::bind::register_functional(m);
  fusedstep::bind::register_commit(m);
  fusedstep::bind::register_batch_norm(m);
  fusedstep::bind::register_losses(m);
  fusedstep::bind::register_dropout(m);
  fusedstep::bind::register_gather(m);
  fusedstep::bind::register_roofs(m);
  fusedstep::bind::register_tensors(m);
  fusedstep::bind::register_vectors(m);
  fusedstep::bind::register_kernel_testing(testing);
}
