#include "bind/losses/work.h"

#include "bind/arguments.h"

namespace fusedstep::bind {

Reduction reduction_of(py::handle given) {
  if (is_text(given, "none")) return Reduction::none;
  if (is_text(given, "mean")) return Reduction::mean;
  if (is_text(given, "sum")) return Reduction::sum;
  value_error({"reduction"}, "expected 'none', 'mean' or 'sum', got " + shown(given));
}

Loss::Loss(Reduction reduction, double divisor, const std::vector<std::int64_t>& shape, Dtype dtype)
    : reduction_(reduction), divisor_(divisor) {
  if (reduction_ != Reduction::none) return;
  py::array made(py::dtype(dtype_name(maths_dtype(dtype))), shape);
  data_ = static_cast<char*>(made.mutable_data());
  values_ = std::move(made);
}

py::object Loss::of_sum(double sum) const {
  if (reduction_ == Reduction::none) return values_;
  return py::float_(reduction_ == Reduction::mean ? sum / divisor_ : sum);
}

Rows rows_of(const Input& logits) {
  Rows seen = {shape_of(logits.given)};
  seen.classes = seen.shape.back();
  seen.shape.pop_back();
  for (const std::int64_t length : seen.shape) seen.rows *= length;
  return seen;
}

}  // namespace fusedstep::bind
