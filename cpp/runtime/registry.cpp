#define FUSEDSTEP_SET host
#include "runtime/registry.h"

#include <cstring>
#include <iterator>
#include <type_traits>

#include "rules/all.h"

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
void write_coefficients(const double* values, Moment now, double* scalars, void* out) {
  using Coefficients = typename R::template Coefficients<T>;
  static_assert(std::is_trivially_copyable_v<Coefficients> && sizeof(Coefficients) <= kMaxCoefficientBytes);
  const auto made = [&] {
    if constexpr (requires { R::template coefficients<T>(unpack<R>(values), now, scalars); }) {
      return R::template coefficients<T>(unpack<R>(values), now, scalars);
    } else {
      return R::template coefficients<T>(unpack<R>(values), now);
    }
  };
  const Coefficients c = made();
  std::memcpy(out, &c, sizeof c);
}

template <class R, class T>
void settle_coefficients(const double* values, const double* sums, const double* scalars, void* coefficients) {
  typename R::template Coefficients<T> c;
  std::memcpy(&c, coefficients, sizeof c);
  R::template settle<T>(unpack<R>(values), c, sums, scalars);
  std::memcpy(coefficients, &c, sizeof c);
}

template <class R>
void describe_native(Rule& rule) {
  rule.coefficients = [](const double* h, Moment now, Dtype dtype, double* scalars, void* out) {
    if (dtype == Dtype::float32) {
      write_coefficients<R, float>(h, now, scalars, out);
    } else {
      write_coefficients<R, double>(h, now, scalars, out);
    }
  };
  if constexpr (R::sums > 0) {
    rule.settle = [](const double* h, Dtype dtype, const double* sums, const double* scalars, void* coefficients) {
      if (dtype == Dtype::float32) {
        settle_coefficients<R, float>(h, sums, scalars, coefficients);
      } else {
        settle_coefficients<R, double>(h, sums, scalars, coefficients);
      }
    };
  }
  if constexpr (R::shared_scalars) {
    rule.weigh = [](const double* h, Moment now, const double* scalars, double* sums) {
      R::weigh(unpack<R>(h), now, scalars, sums);
    };
    rule.share = [](const double* h, const double* totals, double* scalars) {
      R::share(unpack<R>(h), totals, scalars);
    };
  }
}

template <class R>
Rule describe(int index) {
  Rule rule = {};
  rule.name = R::name;
  rule.index = index;
  rule.fields.assign(std::begin(R::fields), std::end(R::fields));
  rule.states.assign(std::begin(R::states), std::end(R::states));
  rule.shapes.assign(std::begin(R::shapes), std::begin(R::shapes) + std::size(R::states));
  static_assert(std::size(R::states) <= kMaxStates && std::size(R::keeps) <= kMaxVariants);
  rule.keeps.assign(std::begin(R::keeps), std::end(R::keeps));
  for (const char* scalar : R::scalars) {
    if (scalar != nullptr) rule.scalars.push_back(scalar);
  }
  static_assert(std::size(R::scalars) <= kMaxScalars);
  rule.shared_scalars = R::shared_scalars;
  rule.copies = R::copies;
  rule.exact = R::exact | R::copies;
  for (std::size_t s = 0; s < rule.shapes.size(); ++s) {
    if (rule.shapes[s] != Shape::same) rule.exact |= 1u << s;
  }
  rule.squares = R::squares;
  rule.first_moment = R::first_moment;
  rule.moment_sign = R::moment_sign;
  rule.sums = R::sums;
  rule.norms = R::norms;
  rule.cautious = R::cautious;
  rule.sparse = R::sparse;
  rule.dense = R::dense;
  rule.begins_with_lr = R::begins_with_lr;
  rule.native = R::native;
  rule.variant = [](const double* h) { return int(R::variant(unpack<R>(h))); };
  rule.variant_of = [](const double* h, int axes) { return int(R::variant_of(unpack<R>(h), axes)); };
  rule.refuse = [](const double* h) { return R::refuse(unpack<R>(h)); };
  rule.refuse_sparse = [](const double* h) { return R::refuse_sparse(unpack<R>(h)); };
  rule.refuse_axes = [](int axes) { return R::refuse_axes(axes); };
  rule.refuse_bits = [](const double* h, int bits) { return R::refuse_bits(unpack<R>(h), bits); };
  rule.coupled_decay = [](const double* h) { return R::coupled_decay(unpack<R>(h)); };
  rule.initial = [](const double* h, int state) { return R::initial(unpack<R>(h), state); };
  rule.initial_scalar = [](const double* h, int scalar) { return R::initial_scalar(unpack<R>(h), scalar); };
  if constexpr (R::native) describe_native<R>(rule);
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
