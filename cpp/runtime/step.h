// A whole optimizer step: all tensors, end to end, shared out in one parallel region a pass.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace fusedstep::runtime {

struct StepTensor {
  StepArgs args;
  Dtype dtype;  // of the arithmetic
  std::int64_t size;
  std::int64_t bytes_per_element;
  // A row-sparse gradient: `grad` has `row_count` rows, for these rows of the parameter. Null: it is dense.
  const std::int64_t* rows;
  std::int64_t row_count, row_size;
};

// What a pass moves: everything that a step does, or the gradients alone.
enum class Reads { all, gradient };

class Step {
 public:
  // The tensors stay where they are until the passes are over.
  void cut(const std::vector<StepTensor>& tensors);

  // `kernels` by dtype. With sums, gives kStepSums of them a tensor: those of its chunks (row by row, where the
  // gradient is row-sparse) added in order, so that they do not depend on the threads.
  void run(const StepPass (&kernels)[kMathsDtypes]);
  // So that the next run with sums allocates nothing.
  void reserve(std::vector<double>& sums);
  void run(const StepPass (&kernels)[kMathsDtypes], std::vector<double>& sums, Reads reads = Reads::all);

 private:
  // An element, or a row, of a tensor.
  struct Place {
    std::size_t tensor;
    std::int64_t item;
  };

  Place place_of(std::int64_t cost, std::int64_t granule) const;
  void run_all(const StepPass (&kernels)[kMathsDtypes], double* sums, std::int64_t bytes) const;
  void run_range(Place from, Place to, const StepPass (&kernels)[kMathsDtypes], double* sums) const;
  static void run_rows(const StepTensor& t, std::int64_t from, std::int64_t to, StepPass kernel, double* sums);

  const std::vector<StepTensor>* tensors_ = nullptr;
  // By tensor, reused from step to step: the cost before it, and the number of the first of the pieces whose sums are
  // taken apart.
  std::vector<std::int64_t> costs_, pieces_;
  std::vector<double> piece_sums_;
  std::int64_t bytes_ = 0, gradient_bytes_ = 0;
};

}  // namespace fusedstep::runtime
