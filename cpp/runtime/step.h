// A pass over all tensors of a step: laid end to end and shared out to threads in one parallel region.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/abi/table.h"

namespace fusedstep::runtime {

struct StepTensor {
  StepArgs args;
  Dtype dtype;  // of the arithmetic
  std::int64_t size;
  std::int64_t bytes_per_element;
  // A row-sparse gradient: `grad` has `row_count` rows, for these rows of the parameter. Null: it is dense.
  const std::int64_t* rows;
  std::int64_t row_count, row_size;
  double squares;  // of the gradient's elements before these, in a larger tensor: where their sum goes on
};

// What a pass reads: everything, or the gradients alone.
enum class Reads { all, gradient };

class Step {
 public:
  // The tensors stay where they are until the passes are over.
  void cut(const std::vector<StepTensor>& tensors);

  // One pass; `kernels` by dtype. `sums`: null, or kStepSums of each piece.
  void run(const StepPass (&kernels)[kMathsDtypes], double* sums = nullptr, Reads reads = Reads::all);
  // One that gives kStepSums a tensor: those of its chunks (row by row, where the gradient is row-sparse) added in
  // order, so that they do not depend on the threads.
  void sum(const StepPass (&kernels)[kMathsDtypes], std::vector<double>& sums, Reads reads = Reads::all);
  // So that the next such pass allocates nothing.
  void reserve(std::vector<double>& sums);

 private:
  // An element, or a row, of a tensor.
  struct Place {
    std::size_t tensor;
    std::int64_t item;
  };

  Place place_of(std::int64_t cost, std::int64_t granule) const;
  void run_range(Place from, Place to, const StepPass (&kernels)[kMathsDtypes], double* sums) const;
  static void run_rows(const StepTensor& t, std::int64_t from, std::int64_t to, StepPass kernel, double* sums);

  const std::vector<StepTensor>* tensors_ = nullptr;
  // By tensor: the cost of all before it, and the number of its first piece (a chunk whose sums are kept apart).
  // Reused from step to step.
  std::vector<std::int64_t> costs_, pieces_;
  std::vector<double> piece_sums_;
  std::int64_t bytes_ = 0, gradient_bytes_ = 0;
};

}  // namespace fusedstep::runtime
