#define FUSEDSTEP_SET host
#include "runtime/registry.h"

#include <cstring>
#include <iterator>
#include <type_traits>

#include "rules/list.h"

namespace fusedstep::runtime {
namespace {

template <class R>
typename R::Hypers unpack(const double* values) {
  using Hypers = typename R::Hypers;
  static_assert(std::is_trivially_copyable_v<Hypers> && sizeof(Hypers) % sizeof(double) == 0);
  static_assert(sizeof(Hypers) / sizeof(double) <= kMaxHypers);
  Hypers hypers;
  std::memcpy(&hypers, values, sizeof hypers);
  return hypers;
}

template <class R, class T>
void write_coefficients(const double* values, Moment now, void* out) {
  using Coefficients = typename R::template Coefficients<T>;
  static_assert(std::is_trivially_copyable_v<Coefficients> && sizeof(Coefficients) <= kMaxCoefficientBytes);
  const Coefficients c = R::template coefficients<T>(unpack<R>(values), now);
  std::memcpy(out, &c, sizeof c);
}

template <class R>
Rule describe(int index) {
  Rule rule;
  rule.name = R::name;
  rule.index = index;
  rule.fields.assign(std::begin(R::fields), std::end(R::fields));
  rule.states.assign(std::begin(R::states), std::end(R::states));
  static_assert(std::size(R::states) <= kMaxStates && std::size(R::keeps) <= kMaxVariants);
  rule.keeps.assign(std::begin(R::keeps), std::end(R::keeps));
  rule.variant = [](const double* h) { return int(R::variant(unpack<R>(h))); };
  rule.refuse = [](const double* h) { return R::refuse(unpack<R>(h)); };
  rule.coupled_decay = [](const double* h) { return R::coupled_decay(unpack<R>(h)); };
  rule.coefficients = [](const double* h, Moment now, Dtype dtype, void* out) {
    if (dtype == Dtype::float32) {
      write_coefficients<R, float>(h, now, out);
    } else {
      write_coefficients<R, double>(h, now, out);
    }
  };
  return rule;
}

template <class... R>
std::vector<Rule> describe_all(RuleList<R...>) {
  static_assert(sizeof...(R) <= kMaxRules);
  int index = 0;
  return {describe<R>(index++)...};
}

}  // namespace

const std::vector<Rule>& rules() {
  static const std::vector<Rule> all = describe_all(host::Rules());
  return all;
}

const Rule* find_rule(const std::string& name) {
  for (const Rule& rule : rules()) {
    if (name == rule.name) return &rule;
  }
  return nullptr;
}

}  // namespace fusedstep::runtime
