// Losses of one element: value, and gradient * scale, of predictions x and targets t. w weights t = 1:
//   binary:  (1 - t) softplus(x) + w t softplus(-x);  (1 - t) s(x) - w t s(-x), s the sigmoid
//   squared: (x - t)^2;                               2 (x - t)
#pragma once

#include "kernels/abi/loss.h"
#include "kernels/codec/narrow.h"
#include "kernels/pack/explog.h"

namespace fusedstep::FUSEDSTEP_SET {

struct Binary {
  template <class V, class S>
  FUSEDSTEP_INLINE static void of(V x, V t, S weight, V& loss, V& gradient) {
    const V zero = spread<V>(0), one = spread<V>(1);
    const auto negative = x < zero;
    const V size = select(negative, -x, x);
    const V e = exponential_below(zero - size);
    const V near = one / (one + e);  // the sigmoid of |x|; `far`: of -|x|
    const V far = e * near;
    const V log = log_1p(e);
    const V no = one - t, yes = t * weight;
    // A term of weight 0 is left out: at an infinite logit it would be 0 * inf.
    loss = where_not(no == zero, no * select(negative, log, size + log)) +
           where_not(yes == zero, yes * select(negative, size + log, log));
    gradient = no * select(negative, far, near) - yes * select(negative, near, far);
  }
};

struct Squared {
  template <class V, class S>
  FUSEDSTEP_INLINE static void of(V x, V t, S, V& loss, V& gradient) {
    const V d = x - t;
    loss = d * d;
    gradient = d + d;
  }
};

template <class T, class Loss>
double elementwise_loss(const ElementwiseLossArgs& a, std::int64_t begin, std::int64_t end) {
  using S = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Lanes;
  const T* x = static_cast<const T*>(a.x) + begin;
  const T* t = static_cast<const T*>(a.targets) + begin;
  T* dx = static_cast<T*>(a.dx) + begin;
  S* losses = a.losses == nullptr ? nullptr : static_cast<S*>(a.losses) + begin;
  const S weight = S(a.weight), scale = S(a.scale);
  LaneSum sum;
  each_half(end - begin, [&](std::int64_t i, std::int64_t n, int half) FUSEDSTEP_LAMBDA {
    V loss, gradient;
    Loss::of(load(x + i, n), load(t + i, n), weight, loss, gradient);
    store(dx + i, gradient * scale, n);
    if (losses != nullptr) {
      store(losses + i, loss, n);
    } else {
      sum.half[half] = sum.half[half] + first(widen(loss), n);
    }
  });
  return sum.total();
}

}  // namespace fusedstep::FUSEDSTEP_SET
