#include "bind/module.h"

#include "runtime/threads.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native half of fusedstep.";
  fusedstep::runtime::watch_forks();
  fusedstep::bind::register_runtime(m);
  fusedstep::bind::register_optimizer(m);
  fusedstep::bind::register_commit(m);
  fusedstep::bind::register_batch_norm(m);
  fusedstep::bind::register_layers(m);
  fusedstep::bind::register_roofs(m);
  fusedstep::bind::register_vectors(m);
}
