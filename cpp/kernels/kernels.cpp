// Compiled once per instruction set, with FUSEDSTEP_SET naming it. Nothing but the table leaves its namespace.
#include "kernels/batch_norm/planes.h"
#include "kernels/batch_norm/rows.h"
#include "kernels/dropout/dropout.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/elementwise.h"
#include "kernels/roof/roof.h"
#include "kernels/step/fused_loops.h"
#include "kernels/step/step.h"
#include "rules/list.h"

#define FUSEDSTEP_STRING_(x) #x
#define FUSEDSTEP_STRING(x) FUSEDSTEP_STRING_(x)

namespace fusedstep::FUSEDSTEP_SET {

template <class Rule, int V, bool Cautious>
constexpr void fill_fused([[maybe_unused]] FusedLoop (&fused)[kFusedWays]) {
  if constexpr ((Rule::keeps[V] & ~(Rule::exact | Rule::copies)) != 0) {
    fused[kFused8bit] = fused_loop<Rule, V, Cautious, kFused8bit>;
    fused[kFusedBfloat16] = fused_loop<Rule, V, Cautious, kFusedBfloat16>;
  }
}

template <class Rule, class T, int... V>
constexpr void fill_variants(KernelTable& table, int rule, Dtype dtype, std::integer_sequence<int, V...>) {
  auto& update = table.update[rule][int(dtype)];
  auto& watched = table.watched[rule][int(dtype)];
  auto& measure = table.measure[rule][int(dtype)];
  ((update[V][0] = update_loop<Rule, V, false, T>), ...);
  ((watched[V][0] = watched_loop<Rule, V, false, T>), ...);
  if constexpr (sizeof(T) == sizeof(float)) (fill_fused<Rule, V, false>(table.fused[rule][V][0]), ...);
  if constexpr (Rule::sums > 0) ((measure[V][0] = measure_loop<Rule, V, false, T>), ...);
  if constexpr (Rule::cautious) {
    ((update[V][1] = update_loop<Rule, V, true, T>), ...);
    if constexpr (sizeof(T) == sizeof(float)) (fill_fused<Rule, V, true>(table.fused[rule][V][1]), ...);
    ((watched[V][1] = watched_loop<Rule, V, true, T>), ...);
    ((measure[V][1] = measure_loop<Rule, V, true, T>), ...);
  }
}

template <class Rule>
constexpr void fill_rule(KernelTable& table, int index) {
  if constexpr (Rule::native) {
    constexpr auto variants = std::make_integer_sequence<int, int(sizeof(Rule::keeps) / sizeof(Rule::keeps[0]))>();
    fill_variants<Rule, float>(table, index, Dtype::float32, variants);
    fill_variants<Rule, double>(table, index, Dtype::float64, variants);
  }
}

template <class... Rule>
constexpr void fill_rules(KernelTable& table, RuleList<Rule...>) {
  int index = 0;
  (fill_rule<Rule>(table, index++), ...);
}

template <class T>
constexpr void fill_passes(KernelTable& table, Dtype dtype) {
  table.step[int(dtype)] = step<T>;
  table.gradient_sums[int(dtype)] = gradient_sums<T>;
  table.measure_sums[int(dtype)] = measure_sums<T>;
  table.dot[int(dtype)] = dot<T>;
  table.axpy[int(dtype)] = axpy<T>;
}

template <class T>
void narrow(const float* from, void* to, std::int64_t n) {
  encode_block(from, static_cast<T*>(to), n, false);
}

template <class T>
constexpr void fill_batch_norm(KernelTable& table, Dtype dtype) {
  table.batch_norm[int(dtype)] = {
      .pivots = {plane_pivots<T>, row_pivots<T>},
      .moments = {{plane_moments<T, false>, plane_moments<T, true>}, {row_moments<T, false>, row_moments<T, true>}},
      .statistics = {{plane_statistics<false>, plane_statistics<true>}, {row_statistics<false>, row_statistics<true>}},
      .coefficients = row_coefficients<T>,
      .apply = {apply_planes<T>, apply_rows<T>},
      .gradient_sums = {plane_gradient_sums<T>, row_gradient_sums<T>},
      .gradient_totals = {plane_gradient_totals, row_gradient_totals},
      .gradient_coefficients = row_gradient_coefficients<T>,
      .gradient = {plane_gradient<T>, row_gradient<T>},
      .forward = forward_planes<T>,
      .backward = backward_planes<T>,
  };
}

template <class T>
constexpr void fill_layers(KernelTable& table, Dtype dtype) {
  const int d = int(dtype);
  table.cross_entropy[d][int(Goal::labels)] = cross_entropy<T, Goal::labels>;
  table.cross_entropy[d][int(Goal::smooth_labels)] = cross_entropy<T, Goal::smooth_labels>;
  table.cross_entropy[d][int(Goal::targets)] = cross_entropy<T, Goal::targets>;
  table.softmax[d][0] = softmax<T, false>;
  table.softmax[d][1] = softmax<T, true>;
  table.elementwise_loss[d][int(ElementwiseLoss::binary)] = elementwise_loss<T, Binary>;
  table.elementwise_loss[d][int(ElementwiseLoss::squared)] = elementwise_loss<T, Squared>;
  table.dropout[d][0] = dropout<T, false>;
  table.dropout[d][1] = dropout<T, true>;
}

template <class T>
constexpr void fill_stored(KernelTable& table, Dtype dtype) {
  fill_batch_norm<T>(table, dtype);
  fill_layers<T>(table, dtype);
}

template <Floats (*F)(Floats)>
void map(const float* x, float* out, std::int64_t n) {
  each_lanes(
      n, [&](std::int64_t i, std::int64_t lanes) FUSEDSTEP_LAMBDA { store(out + i, F(load(x + i, lanes)), lanes); });
}

void philox_words(std::uint64_t key, std::uint64_t upper, std::uint64_t group, std::int64_t groups,
                  std::uint32_t* words) {
  philox_groups(PhiloxKeys(key), upper, group, groups, words, words);
}

template <int... A>
constexpr void fill_roofs(KernelTable& table, std::integer_sequence<int, A...>) {
  ((table.roof_step[A] = roof_step<1 + A>), ...);
}

constexpr KernelTable make_table() {
  KernelTable table = {};
  table.name = FUSEDSTEP_STRING(FUSEDSTEP_SET);
  fill_rules(table, Rules());
  fill_passes<float>(table, Dtype::float32);
  fill_passes<double>(table, Dtype::float64);
  fill_roofs(table, std::make_integer_sequence<int, 1 + kMaxStates>());
  fill_stored<float>(table, Dtype::float32);
  fill_stored<double>(table, Dtype::float64);
  fill_stored<Float16>(table, Dtype::float16);
  fill_stored<BFloat16>(table, Dtype::bfloat16);
  table.philox = philox_words;
  table.exponential = map<exponential>;
  table.log_1p = map<log_1p>;
  table.sum = sum;
  table.narrow[0] = narrow<Float16>;
  table.narrow[1] = narrow<BFloat16>;
  table.roof_map = roof_map;
  return table;
}

// Constant data: code that filled it at load time would run before anyone has asked the processor.
extern constinit const KernelTable table;
constinit const KernelTable table = make_table();

}  // namespace fusedstep::FUSEDSTEP_SET
