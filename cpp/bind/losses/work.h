// A loss, checked: what its backend computes from, and where the results go.
#pragma once

#include <vector>

#include "bind/inputs.h"

namespace fusedstep::bind {

// What happens to the losses of rows, or of elements.
enum class Reduction { none, mean, sum };
Reduction reduction_of(py::handle given);

// The loss that is returned. Its memory is made before anything is written.
class Loss {
 public:
  Loss(Reduction reduction, double divisor, const std::vector<std::int64_t>& shape, Dtype dtype);

  // Where the losses go one by one, of the dtype of the arithmetic: null and None where they are added up.
  char* data() const { return data_; }
  py::object array() const { return values_; }
  // What the gradient of the sum is multiplied by.
  double scale() const { return reduction_ == Reduction::mean ? 1.0 / divisor_ : 1.0; }
  py::object of_sum(double sum) const;

 private:
  Reduction reduction_;
  double divisor_;
  py::object values_ = py::none();
  char* data_ = nullptr;
};

// Rows of classes: the last axis.
struct Rows {
  std::vector<std::int64_t> shape;  // without the classes
  std::int64_t rows = 1, classes = 0;
};
Rows rows_of(const Input& logits);

struct CrossEntropyWork {
  Input logits;
  Rows rows;
  bool with_labels;
  std::vector<std::int64_t> labels;  // a class of each row; or else
  Input targets;                     // a probability of each class
  std::int64_t ignore;
  Input weight;                 // of the classes; none: 1
  std::vector<double> weights;  // the same in double
  double smoothing;
  Result gradient;
};

struct ElementwiseWork {
  ElementwiseLoss loss;
  Input x, targets;
  double weight;
  Result gradient;
};

}  // namespace fusedstep::bind
