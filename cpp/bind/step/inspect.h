// What the arrays of a step must be, checked before the first is written; and where they are.
#pragma once

#include "bind/overlap.h"
#include "bind/step/item.h"
#include "bind/step/settings.h"
#include "runtime/step.h"

namespace fusedstep::bind {

// How a new state is stored; of the tensor its dtype and size count.
Dtype new_state_dtype(const runtime::Rule& rule, const Settings& settings, const runtime::StepTensor& tensor, int s);

class Inspector {
 public:
  Inspector(const runtime::Rule& rule, const Labels& labels) : rule_(rule), labels_(labels) {}

  void begin() { memory_.clear(); }
  // TypeError, ValueError. A gradient in another layout than its parameter's is replaced by a copy.
  void inspect(Item& item, const Settings& settings, runtime::StepTensor& tensor);
  void inspect_param(const Item& item, runtime::StepTensor& tensor);
  // ValueError where any two of those that were inspected overlap.
  void refuse_overlaps();
  // ValueError where any of these overlaps any that another inspector was shown last.
  void refuse_overlaps(const Inspector& other);

 private:
  void add_written(const Array& array, py::ssize_t index, int role) {
    memory_.add_written({array.data, array.bytes, std::int32_t(index), role});
  }
  void require_grad_dtype(const Item& item, const Array& grad, const runtime::StepTensor& tensor) const;
  void inspect_grad(Item& item, runtime::StepTensor& tensor);
  void inspect_rows(const Item& item, const Settings& settings, runtime::StepTensor& tensor);
  void inspect_storage(const Item& item, const Settings& settings, runtime::StepTensor& tensor);
  std::int64_t inspect_states(const Item& item, const Settings& settings, runtime::StepTensor& tensor);
  Array inspect_beside(const Item& item, py::handle array, int role);
  char* inspect_exact(const Item& item, const runtime::StepTensor& tensor, py::handle array, int role);
  Dtype inspect_state(const Item& item, const Settings& settings, const runtime::StepTensor& tensor, int s,
                      StepArgs& args);
  void inspect_scales(const Item& item, const runtime::StepTensor& tensor, int s, float** out);
  void inspect_scalars(const Item& item);

  const runtime::Rule& rule_;
  const Labels& labels_;
  OverlapCheck memory_;
  OverlapCheck both_;  // with another inspector's
};

}  // namespace fusedstep::bind
