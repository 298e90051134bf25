// A whole optimizer step: every tensor cut into chunks, the chunks shared out in one parallel region a pass.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace fusedstep::runtime {

struct StepTensor {
  StepArgs args;
  Dtype dtype;
  std::int64_t size;
  std::int64_t bytes_per_element;
  // A row-sparse gradient: `grad` has `row_count` rows, for these rows of the parameter. Null: it is dense.
  const std::int64_t* rows;
  std::int64_t row_count, row_size;
};

class Step {
 public:
  // The tensors stay where they are until the passes are over.
  void cut(const std::vector<StepTensor>& tensors);

  // `kernels` by dtype. With sums, gives kStepSums of them a tensor: those of its chunks (row by row, where the
  // gradient is row-sparse) added in order, so that they do not depend on the threads.
  void run(const StepPass (&kernels)[kDtypes]);
  void run(const StepPass (&kernels)[kDtypes], std::vector<double>& sums);

 private:
  struct Chunk {
    const StepTensor* tensor;
    std::int64_t begin, end;  // elements, or rows
    std::int64_t piece;       // where its sums are
    std::int64_t cost_before;
  };

  void run_chunks(const StepPass (&kernels)[kDtypes], double* sums) const;
  void run_range(const Chunk* chunk, const Chunk* stop, const StepPass (&kernels)[kDtypes], double* sums) const;
  static void run_rows(const Chunk& chunk, const StepPass (&kernels)[kDtypes], double* sums);

  // Reused from step to step.
  std::vector<Chunk> chunks_;
  std::vector<std::int64_t> pieces_;  // by tensor, the number of the first
  std::vector<double> piece_sums_;
  std::int64_t bytes_ = 0, cost_ = 0;
};

}  // namespace fusedstep::runtime
