// Who computes dropout: the kernels of an instruction set, or the NumPy reference.
#pragma once

#include <memory>

#include "bind/inputs.h"
#include "kernels/abi/table.h"

namespace fusedstep::bind {

// y = residual + dropout(x), checked.
struct DropoutWork {
  Input x, residual;  // no residual: no array
  Result y;
  double p;
  std::uint64_t key, offset;  // of the random words; the first word that is used
  std::int64_t unit;          // elements that share a word
};

class DropoutBackend {
 public:
  virtual ~DropoutBackend() = default;

  // x is not empty.
  virtual void dropout(const DropoutWork& work) const = 0;
};

std::unique_ptr<const DropoutBackend> native_dropout(const KernelTable& table);
std::unique_ptr<const DropoutBackend> numpy_dropout();

}  // namespace fusedstep::bind
