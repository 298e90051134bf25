#include "bind/backend.h"

#include <map>

#include "runtime/isa.h"

namespace fusedstep::bind {
namespace {

Backends native_backends(const KernelTable& table) {
  return {native_step(table), native_batch_norm(table), native_losses(table), native_dropout(table),
          native_vectors(table)};
}

}  // namespace

const Backends& numpy_backends() {
  // Never destroyed: Python may be gone by then.
  static const auto* made =
      new Backends{numpy_step(), numpy_batch_norm(), numpy_losses(), numpy_dropout(), numpy_vectors()};
  return *made;
}

const Backends& active_backends() {
  static auto* made = new std::map<const KernelTable*, Backends>;
  const KernelTable* table = runtime::active_table();
  if (table == nullptr) return numpy_backends();
  const auto found = made->find(table);
  return found != made->end() ? found->second : made->emplace(table, native_backends(*table)).first->second;
}

const KernelTable& native_table(const char* what) {
  if (const KernelTable* table = runtime::active_table()) return *table;
  throw py::value_error("isa: 'numpy' has no " + std::string(what));
}

}  // namespace fusedstep::bind
