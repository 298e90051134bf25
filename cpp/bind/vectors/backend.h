// Who computes with whole vectors: the kernels of an instruction set, or the NumPy reference.
#pragma once

#include <memory>

#include "bind/arrays.h"

namespace fusedstep::bind {

// A contiguous array of one axis.
struct Vector {
  py::object array;
  Array memory;
};

class VectorBackend {
 public:
  virtual ~VectorBackend() = default;

  virtual double dot(const Vector& x, const Vector& y) const = 0;
  // y <- y + a x.
  virtual void axpy(double a, const Vector& x, const Vector& y) const = 0;
  // Rounds float32 to an array of 16 bits, as a step and batch norm do.
  virtual void narrow(const Vector& from, const Vector& to) const = 0;
};

std::unique_ptr<const VectorBackend> native_vectors(const KernelTable& table);
std::unique_ptr<const VectorBackend> numpy_vectors();

}  // namespace fusedstep::bind
