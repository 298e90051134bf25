#include "bind/step/item.h"

namespace fusedstep::bind {

Labels::Labels(const runtime::Rule& rule, Naming naming) : rule_(rule), naming_(naming) {
  for (const char* state : rule.states) scales_names_.push_back(std::string(state) + "_scale");
}

Label Labels::of(py::ssize_t index, int role) const {
  const bool function = naming_ == Naming::function;
  if (role == kParam) return {function ? "param" : "params", index, nullptr, groups_.ptr()};
  if (role == kGrad) return {function ? "grad" : "grads", index, nullptr, groups_.ptr()};
  const int states = int(rule_.states.size());
  const char* name = role == kAverage  ? "ema"
                     : role == kMaster ? "master"
                     : role >= kScales ? scales(role - kScales).c_str()
                     : role < states   ? rule_.states[std::size_t(role)]
                                       : rule_.scalars[std::size_t(role - states)];
  if (function) return {name, index};
  return {"state", index, name};
}

}  // namespace fusedstep::bind
