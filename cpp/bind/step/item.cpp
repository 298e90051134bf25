#include "bind/step/item.h"

namespace fusedstep::bind {

Labels::Labels(const runtime::Rule& rule, Naming naming)
    : rule_(rule),
      function_(naming == Naming::function),
      tensors_(naming == Naming::tensors),
      param_(function_ ? "param" : "params"),
      grad_(function_ ? "grad" : "grads") {
  for (const char* state : rule.states) scales_names_.push_back(std::string(state) + "_scale");
}

Label Labels::of(py::ssize_t index, int role) const {
  if (role == kParam) return {param_, index, nullptr, groups_.ptr()};
  if (role == kGrad) return {grad_, index, nullptr, groups_.ptr()};
  const int states = int(rule_.states.size());
  const char* name = role == kAverage  ? "ema"
                     : role == kMaster ? "master"
                     : role >= kScales ? scales(role - kScales).c_str()
                     : role < states   ? rule_.states[std::size_t(role)]
                                       : rule_.scalars[std::size_t(role - states)];
  if (function_) return {name, index};
  return {"state", index, name, tensors_ ? groups_.ptr() : nullptr};
}

}  // namespace fusedstep::bind
