// Softmax cross-entropy of rows of logits z against weights q of the classes: loss sum_j q_j (log(sum_k e^(z_k - m)) -
// (z_j - m)), m = max z; gradient (softmax(z) sum_j q_j - q) * scale. What q is made of:
//   labels:        q_j = peak w_y where j is the label y, else 0
//   smooth labels: the same, and `rest` added to every one
//   targets:       q_j = w_j (peak t_j + rest); with labels, w_j rest, and peak w_y added to the label's
#pragma once

#include "kernels/loss/softmax.h"

namespace fusedstep::FUSEDSTEP_SET {

// v with x in lane k. Not inlined: it is rare.
__attribute__((noinline)) inline void set_lane(float* v, std::int64_t k, float x) { v[k] = x; }
__attribute__((noinline)) inline void set_lane(double* v, std::int64_t k, double x) { v[k] = x; }
template <class V, class S>
FUSEDSTEP_INLINE V with_lane(V v, std::int64_t k, S x) {
  if (std::uint64_t(k) >= kLanes) [[likely]]
    return v;
  alignas(64) S lanes[kLanes];
  store(lanes, v);
  set_lane(lanes, k, x);
  return load(lanes);
}

// Computes the losses of 16 rows at a time: their logarithms are taken in one pack.
class Losses {
 public:
  explicit Losses(double* out) : out_(out) {}
  FUSEDSTEP_INLINE void add(RowSum sum, double whole, double wanted) {
    ties_[count_] = sum.ties;
    rest_[count_] = sum.rest;
    whole_[count_] = whole;
    wanted_[count_] = wanted;
    if (++count_ == kLanes) write();
  }
  FUSEDSTEP_INLINE void write() {
    const Doubles log = log_of_sum(load_wide(ties_, kLanes), load_wide(rest_, kLanes));
    store(out_, load_wide(whole_, kLanes) * log - load_wide(wanted_, kLanes), count_);
    out_ += count_;
    count_ = 0;
  }

 private:
  double* out_;
  std::int64_t count_ = 0;
  alignas(64) double ties_[kLanes] = {}, rest_[kLanes] = {}, whole_[kLanes] = {}, wanted_[kLanes] = {};
};

FUSEDSTEP_INLINE double as_double(const float* z) { return double(*z); }
FUSEDSTEP_INLINE double as_double(const double* z) { return *z; }
template <class T>
FUSEDSTEP_INLINE double as_double(const T* z) {
  return double(lowest(load(z, 1)));
}

// Longer than other functions: what a row needs stays in registers from its maximum to its gradient.
template <class T, Goal G>
void cross_entropy(const CrossEntropyArgs& a, void* scratch, std::int64_t begin, std::int64_t end) {
  using S = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Lanes;
  constexpr int kSums = G == Goal::labels ? 1 : G == Goal::smooth_labels ? 2 : 3;
  const std::int64_t classes = a.classes;
  auto* e = static_cast<S*>(scratch);
  const auto* weight = static_cast<const S*>(a.weight);
  Losses losses(a.losses + begin);
  const T* logits = static_cast<const T*>(a.logits);
  double next_max = begin < end ? row_max(logits + begin * classes, classes) : 0.0;
  for (std::int64_t row = begin; row < end; ++row) {
    const T* z = logits + row * classes;
    const double max = next_max;
    // The maximum of the next row is computed while this row's last steps wait for each other.
    const auto look_ahead = [&]() FUSEDSTEP_LAMBDA {
      if (row + 1 < end) next_max = row_max(z + classes, classes);
    };
    T* dz = static_cast<T*>(a.dlogits) + row * classes;
    const std::int64_t label = a.labels == nullptr ? -1 : a.labels[row];
    if (a.labels != nullptr && label == a.ignore) {
      losses.add({1.0, 0.0}, 0.0, 0.0);
      look_ahead();
      write_lanes(dz, classes, a.stream, [&](std::int64_t, std::int64_t) FUSEDSTEP_LAMBDA { return spread<V>(0); });
      continue;
    }
    const double peak = label < 0 ? 0.0 : a.peak * (weight == nullptr ? 1.0 : double(weight[label]));
    const T* targets = a.targets == nullptr ? nullptr : static_cast<const T*>(a.targets) + row * classes;
    const V rest = spread<V>(S(a.rest));
    const S peak_of_targets = S(a.peak);
    // q without the peak at the label.
    const auto goal = [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA {
      V q = targets == nullptr ? rest : load(targets + i, n) * peak_of_targets + rest;
      if (weight != nullptr) q = q * load(weight + i, n);
      return q;
    };

    // Read before anything is written: dz may be z.
    const double label_logit = label < 0 ? 0.0 : as_double(z + label) - max;
    LaneSum sums[kSums];
    const RowSum sum = row_exponentials(z, max, classes, e, sums,
                                        [&](std::int64_t i, std::int64_t n, V d, V(&t)[kSums]) FUSEDSTEP_LAMBDA {
                                          // The gradient's lines, unless it is written past the cache.
                                          if (!a.stream) __builtin_prefetch(dz + i, 1);
                                          if constexpr (G == Goal::smooth_labels) t[1] = d;
                                          if constexpr (G == Goal::targets) {
                                            const V q = goal(i, n);
                                            // 0 where q is 0, even at a logit of -inf.
                                            t[1] = where_not(q == spread<V>(0), q * d);
                                            t[2] = q;
                                          }
                                        });
    look_ahead();
    const double total = sum.total();
    double whole = peak, wanted = peak == 0.0 ? 0.0 : peak * label_logit;
    if constexpr (G == Goal::smooth_labels) {
      whole += a.rest * double(classes);
      wanted += a.rest * sums[1].total();
    }
    if constexpr (G == Goal::targets) {
      whole += sums[2].total();
      wanted += sums[1].total();
    }
    losses.add(sum, whole, wanted);

    const double scale = a.scale;
    const S factor = S(scale * whole / total);
    [[maybe_unused]] S label_gradient = 0;
    if (label >= 0) {
      if constexpr (G == Goal::labels) {
        // p_y - 1, without cancellation where the label has the largest logit.
        e[label] = S(label_logit == 0.0 ? (1.0 - sum.ties) - sum.rest : double(e[label]) - total);
      } else if constexpr (G == Goal::smooth_labels) {
        label_gradient = (e[label] * factor - S(scale * a.rest)) - S(scale * peak);
      } else {
        const S q = weight == nullptr ? S(a.rest) : S(a.rest) * weight[label];
        label_gradient = (e[label] * factor - q * S(scale)) - S(scale * peak);
      }
    }
    const V uniform = spread<V>(S(scale * a.rest));
    write_lanes(dz, classes, a.stream, [&](std::int64_t i, std::int64_t n) FUSEDSTEP_LAMBDA {
      V p = load(e + i, n) * factor;
      if constexpr (G == Goal::smooth_labels) p = p - uniform;
      if constexpr (G == Goal::targets) p = p - goal(i, n) * S(scale);
      // Here and not afterwards: a line that was streamed should not be read back.
      if constexpr (G != Goal::labels) p = with_lane(p, label - i, label_gradient);
      return p;
    });
  }
  losses.write();
  if (a.stream) end_stream();
}

}  // namespace fusedstep::FUSEDSTEP_SET
