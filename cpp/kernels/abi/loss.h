// Losses and softmax.
#pragma once

#include <cstdint>

#include "kernels/abi/dtype.h"

namespace fusedstep {

struct SoftmaxArgs {
  std::int64_t rows, classes;
  const void* logits;
  void* out;
  bool stream;
};

// What a loss wants of a row: one class, by its label; that and a little of all; any share of each.
enum class Goal { labels, smooth_labels, targets };
inline constexpr int kGoals = 3;

struct CrossEntropyArgs {
  std::int64_t rows, classes;
  const void* logits;
  const std::int64_t* labels;  // null: none
  std::int64_t ignore;         // the label of rows that do not count
  const void* targets;         // null: none; else stored as the logits
  const void* weight;          // null: 1; else of the classes, in the dtype of the arithmetic
  double peak, rest;           // the target distribution: `peak` at the label (or times the targets), `rest` everywhere
  void* dlogits;
  double* losses;  // one a row
  double scale;    // of the gradient
  bool stream;
};

struct ElementwiseLossArgs {
  const void* x;
  const void* targets;
  void* dx;
  void* losses;  // one an element in the dtype of the arithmetic; null: only their sum is wanted
  double weight;
  double scale;  // of the gradient
};
enum class ElementwiseLoss { binary, squared };
inline constexpr int kElementwiseLosses = 2;

// [stored dtype]. Rows [begin, end); `scratch` takes one row in the dtype of the arithmetic.
struct CrossEntropyKernels {
  void (*loss[kDtypes][kGoals])(const CrossEntropyArgs&, void* scratch, std::int64_t begin, std::int64_t end);
};
struct SoftmaxKernels {
  void (*softmax[kDtypes][2])(const SoftmaxArgs&, void* scratch, std::int64_t begin, std::int64_t end);  // [.][log]
};
// Elements [begin, end); gives the sum of their losses.
struct ElementwiseKernels {
  double (*loss[kDtypes][kElementwiseLosses])(const ElementwiseLossArgs&, std::int64_t begin, std::int64_t end);
};

}  // namespace fusedstep
