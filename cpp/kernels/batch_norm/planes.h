// Batch normalization of planes (n, c, l).
#pragma once

#include "kernels/batch_norm/batch_norm.h"

namespace fusedstep::FUSEDSTEP_SET {

// How many values ahead planes are prefetched, rounded to whole planes: the processor's own prefetch stops at the end
// of each.
inline constexpr std::int64_t kPlanesAhead = 1024;
constexpr std::int64_t planes_ahead(std::int64_t c, std::int64_t l) { return c * l * (1 + kPlanesAhead / l); }

FUSEDSTEP_INLINE void fetch_line(const void* p) { __builtin_prefetch(p, 0, 2); }

// A block of a channel: planes [plane, plane + runs), or, from value `at` on, a part of one.
struct PlanesBlock {
  std::int64_t plane, at, runs, l;
};

FUSEDSTEP_INLINE PlanesBlock block_of(std::int64_t n, std::int64_t l, std::int64_t block) {
  if (l >= kPlanesBlock) {
    const std::int64_t parts = (l + kPlanesBlock - 1) / kPlanesBlock, at = block % parts * kPlanesBlock;
    return {block / parts, at, 1, l - at < kPlanesBlock ? l - at : kPlanesBlock};
  }
  const std::int64_t planes = kPlanesBlock / l, begin = block * planes;
  return {begin, 0, n - begin < planes ? n - begin : planes, l};
}

// Lanes that do not fit into the registers are summed in turns. So many values are summed in a turn: the next turn
// finds them in the cache.
inline constexpr std::int64_t kSumStrip = 2048;

// Adds the terms of the first n of N values from place i on; with n <= 8, of 8 lanes only.
template <int N, bool Exact, class V, class Terms>
FUSEDSTEP_INLINE void add_terms(Sums<Exact, V>& u, Sums<Exact, V>& v, std::int64_t i, std::int64_t n, Terms terms) {
  if constexpr (N == 16 && is_pair<V> && kVectorBytes < 64) {
    if (n <= 8) {
      const auto t = terms.template operator()<8>(i, n);
      u.add_to(u.high.low, u.low.low, t.u, t.u_low);
      v.add_to(v.high.low, v.low.low, t.v, decltype(t.v){});
      return;
    }
  }
  const auto t = terms.template operator()<N>(i, n);
  u.add(t.u, t.u_low);
  v.add(t.v, V{});
}

// Adds the terms of planes [from, to) of a block to two sums of 32 lanes. term<N>(offset of the value in the array, its
// run, its place in the run, lanes) gives the terms of N lanes. Each turn takes as many lanes as the registers hold.
template <bool Exact, class Args, class Term>
FUSEDSTEP_INLINE void add_planes(const Args& a, std::int64_t c, const PlanesBlock& b, std::int64_t from,
                                 std::int64_t to, double* first_lanes, double* second_lanes, Term term) {
  constexpr int summed = kSummed<Exact>, lanes = summed < kLanes ? summed : kLanes, packs = summed / lanes;
  using V = Pack<double, lanes>;
  const std::int64_t planes = summed == kSumLanes ? to - from : b.l < kSumStrip ? kSumStrip / b.l : 1;
  const std::int64_t part = summed == kSumLanes || b.l < kSumStrip ? b.l : kSumStrip;
  for (std::int64_t plane = from; plane < to; plane += planes) {
    const std::int64_t end = to - plane < planes ? to : plane + planes;
    for (std::int64_t at = 0; at < b.l; at += part) {
      const std::int64_t stop = b.l - at < part ? b.l : at + part;
      for (int turn = 0; turn < kSumLanes && turn < stop - at; turn += summed) {
        Sums<Exact, V> u[packs], v[packs];
        for (int k = 0; k < packs; ++k) {
          u[k].read(first_lanes + turn + k * lanes, kSumLanes);
          v[k].read(second_lanes + turn + k * lanes, kSumLanes);
        }
        for (std::int64_t k = plane; k < end; ++k) {
          const std::int64_t run = (b.plane + k) * a.c + c, offset = run * a.l + b.at;
          const auto terms = [&]<int N>(std::int64_t i, std::int64_t n)
                                 FUSEDSTEP_LAMBDA { return term.template operator()<N>(offset + i, run, b.at + i, n); };
          std::int64_t i = at + turn;
          for (; i + summed <= stop; i += kSumLanes) {
            for (int pack = 0; pack < packs; ++pack) add_terms<lanes>(u[pack], v[pack], i + pack * lanes, lanes, terms);
          }
          if (i < stop) add_terms<lanes>(u[0], v[0], i, stop - i < lanes ? stop - i : lanes, terms);
          if (packs > 1 && i + lanes < stop) {
            add_terms<lanes>(u[packs - 1], v[packs - 1], i + lanes, stop - i - lanes, terms);
          }
        }
        for (int k = 0; k < packs; ++k) {
          u[k].write(first_lanes + turn + k * lanes, kSumLanes);
          v[k].write(second_lanes + turn + k * lanes, kSumLanes);
        }
      }
    }
  }
}

// Adds up the terms of a block into two sums.
template <bool Exact, class Args, class Term>
FUSEDSTEP_INLINE void sum_block(const Args& a, std::int64_t c, std::int64_t block, double* sums, Term term) {
  alignas(64) double first_lanes[kWords<Exact> * kSumLanes], second_lanes[kWords<Exact> * kSumLanes];
  clear(first_lanes);
  clear(second_lanes);
  const PlanesBlock b = block_of(a.n, a.l, block);
  add_planes<Exact>(a, c, b, 0, b.runs, first_lanes, second_lanes, term);
  const TwoDoubles first_total = total_of<Exact>(first_lanes), second_total = total_of<Exact>(second_lanes);
  sums[0] = first_total.high;
  sums[kWords<Exact>] = second_total.high;
  if constexpr (Exact) {
    sums[1] = first_total.low;
    sums[3] = second_total.low;
  }
}

// Small planes of neighbouring channels are taken together, for alone each is a few cache lines, far from the next: the
// planes of a group of channels, of some samples at a time.
inline constexpr std::int64_t kSmallPlane = 256;
inline constexpr int kGroup = 32;
inline constexpr std::int64_t kSamplesAtOnce = 16;
// What a group holds stays in the second-level cache.
inline constexpr std::int64_t kGroupBytes = 512 << 10;

// Channels of a group; 1: they are taken one by one.
template <class T, class Args>
inline std::int64_t group_of(const Args& a, int arrays) {
  if (a.l >= kSmallPlane) return 1;
  const std::int64_t channels = kGroupBytes / (a.n * a.l * std::int64_t(sizeof(T)) * arrays);
  return channels < 2 ? 1 : channels < kGroup ? channels : kGroup;
}

// Two sums of each of `count` channels from c on. term(channel) gives the terms of one as sum_block takes them.
template <class Args, class TermOf>
FUSEDSTEP_INLINE void sum_group(const Args& a, std::int64_t c, int count, TwoDoubles* first, TwoDoubles* second,
                                TermOf term_of) {
  alignas(64) double lanes[2][kGroup][kSumLanes];
  for (int k = 0; k < count; ++k) first[k] = second[k] = {0.0, 0.0};
  const std::int64_t blocks = plane_blocks(a.n, a.l);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const PlanesBlock b = block_of(a.n, a.l, block);
    for (int k = 0; k < count; ++k) {
      clear(lanes[0][k]);
      clear(lanes[1][k]);
    }
    for (std::int64_t from = 0; from < b.runs; from += kSamplesAtOnce) {
      const std::int64_t to = b.runs - from < kSamplesAtOnce ? b.runs : from + kSamplesAtOnce;
      for (int k = 0; k < count; ++k) add_planes<false>(a, c + k, b, from, to, lanes[0][k], lanes[1][k], term_of(k));
    }
    for (int k = 0; k < count; ++k) {
      gather(first[k], total_of<false>(lanes[0][k]));
      gather(second[k], total_of<false>(lanes[1][k]));
    }
  }
}

template <bool Exact>
FUSEDSTEP_INLINE TwoDoubles block_sum(const double* sums) {
  return {sums[0], Exact ? sums[1] : 0.0};
}

template <class T>
inline double plane_pivot(const T* plane, std::int64_t l) {
  const std::int64_t n = l < kPivotValues ? l : kPivotValues;
  const double mean = sum_of_lanes(load_wide(plane, n)) / double(n);
  return double(typename Arithmetic<T>::Scalar(mean));
}

template <class T>
inline void plane_pivots(const BatchNormArgs& a) {
  for (std::int64_t c = 0; c < a.c; ++c) a.pivot[c] = plane_pivot(static_cast<const T*>(a.x) + c * a.l, a.l);
}

// The terms of x - pivot and its square; `ahead` values on, x is prefetched.
template <bool Exact, class T>
FUSEDSTEP_INLINE auto moments_from(const T* x, double pivot, std::int64_t ahead) {
  return [=]<int N>(std::int64_t i, std::int64_t, std::int64_t, std::int64_t n) FUSEDSTEP_LAMBDA {
    fetch_line(x + i + ahead);
    return moment_terms<Exact>(load_wide<N>(x + i, n), spread<Pack<double, N>>(pivot), n);
  };
}

template <class T, bool Exact>
__attribute__((noinline)) void block_moments(const BatchNormArgs& a, std::int64_t c, std::int64_t block, double pivot,
                                             double* sums) {
  sum_block<Exact>(a, c, block, sums, moments_from<Exact>(static_cast<const T*>(a.x), pivot, planes_ahead(a.c, a.l)));
}

// Items are blocks: all blocks of channel 0, then those of channel 1, and so on.
template <class T, bool Exact>
inline void plane_moments(const BatchNormArgs& a, double* workspace, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = plane_blocks(a.n, a.l);
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t c = item / blocks;
    block_moments<T, Exact>(a, c, item % blocks, a.pivot[c], workspace + item * 2 * kWords<Exact>);
  }
}

template <bool Exact>
inline void plane_statistics(const BatchNormArgs& a, double* workspace) {
  const std::int64_t blocks = plane_blocks(a.n, a.l);
  for (std::int64_t c = 0; c < a.c; ++c) {
    TwoDoubles sum = {0.0, 0.0}, squares = {0.0, 0.0};
    for (std::int64_t item = c * blocks; item < (c + 1) * blocks; ++item) {
      gather(sum, block_sum<Exact>(workspace + item * 2 * kWords<Exact>));
      gather(squares, block_sum<Exact>(workspace + (item * 2 + 1) * kWords<Exact>));
    }
    take_statistics(a, c, a.pivot[c], sum, squares);
  }
}

// Runs of planes from number `run` on, from value `at` of each.
template <class T, class Coefficients>
inline void normalize_runs(const BatchNormArgs& a, std::int64_t run, std::int64_t at, const Runs& r,
                           const Coefficients& coefficients) {
  const std::int64_t offset = run * a.l + at;
  normalize(static_cast<T*>(a.y) + offset, static_cast<const T*>(a.x) + offset,
            a.residual ? static_cast<const T*>(a.residual) + offset : nullptr,
            a.mask ? a.mask + run * mask_words(a.l) + at / 16 : nullptr, r, a.stream, coefficients);
}

// apply(run, at, runs) for all planes of channel c, a few at a time or large ones in parts. Backwards: what was read
// last is likeliest still in the cache.
inline constexpr std::int64_t kAppliedAtOnce = 2048;
template <class Args, class Apply>
FUSEDSTEP_INLINE void each_plane_from_behind(const Args& a, std::int64_t c, Apply apply) {
  const std::int64_t parts = plane_parts(a.l), planes = 1 + (kAppliedAtOnce - 1) / a.l;
  const std::int64_t pitch = a.c * a.l, words = a.c * mask_words(a.l);
  for (std::int64_t end = a.n; end > 0; end -= planes) {
    const std::int64_t first = end < planes ? 0 : end - planes;
    if (parts == 1) {
      apply(first * a.c + c, 0, Runs{end - first, a.l, pitch, words, -planes * pitch});
      continue;
    }
    for (std::int64_t at = (parts - 1) * kPlanesBlock; at >= 0; at -= kPlanesBlock) {
      apply(first * a.c + c, at, Runs{1, a.l - at < kPlanesBlock ? a.l - at : kPlanesBlock, 0, 0, -kPlanesBlock});
    }
  }
}

// apply(run, at, runs) for items [begin, end): planes in the order of memory, or parts of large ones.
template <class Args, class Apply>
FUSEDSTEP_INLINE void each_plane(const Args& a, std::int64_t begin, std::int64_t end, Apply apply) {
  const std::int64_t parts = plane_parts(a.l);
  if (parts == 1) return apply(begin, 0, Runs{end - begin, a.l, a.l, mask_words(a.l)});
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t at = item % parts * kPlanesBlock;
    apply(item / parts, at, Runs{1, a.l - at < kPlanesBlock ? a.l - at : kPlanesBlock, 0, 0});
  }
}

template <class T, template <class> class Coefficients>
FUSEDSTEP_INLINE auto per_run(const void* arrays, std::int64_t channels, std::int64_t run) {
  using Scalar = typename Arithmetic<T>::Scalar;
  return PerRun<Scalar, Coefficients>{static_cast<const Scalar*>(arrays), channels, run % channels, channels};
}
template <class T, template <class> class Coefficients, class Args>
FUSEDSTEP_INLINE auto of_channel(const Args& a, std::int64_t c) {
  return OfChannel<Coefficients<typename Arithmetic<T>::Scalar>, Args>(a, c);
}

template <class T>
inline void plane_coefficients(const BatchNormArgs& a, void* out) {
  auto* arrays = static_cast<typename Arithmetic<T>::Scalar*>(out);
  a.folded ? lay_out<typename Arithmetic<T>::Scalar, Folded>(a, arrays, a.c, 0, a.c)
           : lay_out<typename Arithmetic<T>::Scalar, Affine>(a, arrays, a.c, 0, a.c);
}

template <class T>
inline void apply_planes(const BatchNormArgs& a, const void* coefficients, std::int64_t begin, std::int64_t end) {
  each_plane(a, begin, end, [&](std::int64_t run, std::int64_t at, const Runs& r) FUSEDSTEP_LAMBDA {
    a.folded ? normalize_runs<T>(a, run, at, r, per_run<T, Folded>(coefficients, a.c, run))
             : normalize_runs<T>(a, run, at, r, per_run<T, Affine>(coefficients, a.c, run));
  });
  if (a.stream) end_stream();
}

// Coefficients of `count` channels from c on, for runs of one channel each.
template <class T, template <class> class Coefficients>
struct OfGroup {
  using Scalar = typename Arithmetic<T>::Scalar;
  Scalar arrays[kCoefficients * kGroup];

  template <class Args>
  OfGroup(const Args& a, std::int64_t c, int count) {
    lay_out<Scalar, Coefficients>(a, arrays, kGroup, c, c + count);
  }
  PerRun<Scalar, Coefficients> of_sample(int count) const { return {arrays, kGroup, 0, count}; }
};

template <class T>
void forward_group(const BatchNormArgs& a, std::int64_t c, int count) {
  const T* x = static_cast<const T*>(a.x);
  double pivots[kGroup];
  for (int k = 0; k < count; ++k) pivots[k] = plane_pivot(x + (c + k) * a.l, a.l);
  TwoDoubles sums[kGroup], squares[kGroup];
  sum_group(a, c, count, sums, squares,
            [&](int k) FUSEDSTEP_LAMBDA { return moments_from<false>(x, pivots[k], kSamplesAtOnce * a.c * a.l); });
  for (int k = 0; k < count; ++k) take_statistics(a, c + k, pivots[k], sums[k], squares[k]);
  const OfGroup<T, Affine> coefficients(a, c, count);
  for (std::int64_t sample = 0; sample < a.n; ++sample) {
    const Runs runs = {count, a.l, a.l, mask_words(a.l), a.c * a.l};
    normalize_runs<T>(a, sample * a.c + c, 0, runs, coefficients.of_sample(count));
  }
}

template <class T>
inline void forward_planes(const BatchNormArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = plane_blocks(a.n, a.l), group = group_of<T>(a, 1);
  if (group > 1) {
    for (std::int64_t c = begin; c < end; c += group) {
      forward_group<T>(a, c, int(end - c < group ? end - c : group));
    }
    if (a.stream) end_stream();
    return;
  }
  for (std::int64_t c = begin; c < end; ++c) {
    const double pivot = plane_pivot(static_cast<const T*>(a.x) + c * a.l, a.l);
    TwoDoubles sum = {0.0, 0.0}, squares = {0.0, 0.0};
    for (std::int64_t block = 0; block < blocks; ++block) {
      double sums[2];
      block_moments<T, false>(a, c, block, pivot, sums);
      gather(sum, block_sum<false>(sums));
      gather(squares, block_sum<false>(sums + 1));
    }
    take_statistics(a, c, pivot, sum, squares);
    each_plane_from_behind(a, c, [&](std::int64_t run, std::int64_t at, const Runs& r) FUSEDSTEP_LAMBDA {
      normalize_runs<T>(a, run, at, r, of_channel<T, Affine>(a, c));
    });
  }
  if (a.stream) end_stream();
}

// The terms of dy and dy (x - mean) of channel c.
template <class T, bool Relu>
FUSEDSTEP_INLINE auto gradients_of(const BatchNormGradientArgs& a, std::int64_t c, std::int64_t ahead) {
  const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy);
  const std::uint16_t* mask = a.mask;
  const double mean = a.mean[c];
  const std::int64_t words = mask_words(a.l);
  return [=]<int N>(std::int64_t i, std::int64_t run, std::int64_t at, std::int64_t n) FUSEDSTEP_LAMBDA {
    using V = Pack<double, N>;
    fetch_line(x + i + ahead);
    fetch_line(dy + i + ahead);
    V g;
    if constexpr (Relu) {
      g = load_kept<N>(dy + i, n, bits_at(mask + run * words, at));
    } else {
      g = load_wide<N>(dy + i, n);
    }
    return Terms<V>{g, g * first(load_wide<N>(x + i, n) - mean, n), V{}};
  };
}

template <class T, bool Relu>
__attribute__((noinline)) void block_gradient_sums(const BatchNormGradientArgs& a, std::int64_t c, std::int64_t block,
                                                   double* sums) {
  sum_block<false>(a, c, block, sums, gradients_of<T, Relu>(a, c, planes_ahead(a.c, a.l)));
}

template <class T, bool Relu>
__attribute__((noinline)) void group_gradient_sums(const BatchNormGradientArgs& a, std::int64_t c, int count,
                                                   TwoDoubles* sum_dy, TwoDoubles* sum_dy_d) {
  sum_group(a, c, count, sum_dy, sum_dy_d,
            [&](int k) FUSEDSTEP_LAMBDA { return gradients_of<T, Relu>(a, c + k, kSamplesAtOnce * a.c * a.l); });
}

template <class T>
inline void plane_gradient_sums(const BatchNormGradientArgs& a, double* workspace, std::int64_t begin,
                                std::int64_t end) {
  const std::int64_t blocks = plane_blocks(a.n, a.l);
  for (std::int64_t item = begin; item < end; ++item) {
    a.mask ? block_gradient_sums<T, true>(a, item / blocks, item % blocks, workspace + item * 2)
           : block_gradient_sums<T, false>(a, item / blocks, item % blocks, workspace + item * 2);
  }
}

inline void plane_gradient_totals(const BatchNormGradientArgs& a, double* workspace) {
  const std::int64_t blocks = plane_blocks(a.n, a.l);
  for (std::int64_t c = 0; c < a.c; ++c) {
    TwoDoubles sum_dy = {0.0, 0.0}, sum_dy_d = {0.0, 0.0};
    for (std::int64_t item = c * blocks; item < (c + 1) * blocks; ++item) {
      gather(sum_dy, block_sum<false>(workspace + 2 * item));
      gather(sum_dy_d, block_sum<false>(workspace + 2 * item + 1));
    }
    take_gradient_sums(a, c, sum_dy, sum_dy_d);
  }
}

template <class T, class Coefficients>
inline void differentiate_runs(const BatchNormGradientArgs& a, std::int64_t run, std::int64_t at, const Runs& r,
                               const Coefficients& coefficients) {
  const std::int64_t offset = run * a.l + at;
  differentiate(static_cast<T*>(a.dx) + offset, a.dresidual ? static_cast<T*>(a.dresidual) + offset : nullptr,
                static_cast<const T*>(a.dy) + offset, static_cast<const T*>(a.x) + offset,
                a.mask ? a.mask + run * mask_words(a.l) + at / 16 : nullptr, r, a.stream, coefficients);
}

template <class T>
inline void plane_gradient_coefficients(const BatchNormGradientArgs& a, void* out) {
  auto* arrays = static_cast<typename Arithmetic<T>::Scalar*>(out);
  a.training ? lay_out<typename Arithmetic<T>::Scalar, Gradient>(a, arrays, a.c, 0, a.c)
             : lay_out<typename Arithmetic<T>::Scalar, Scaled>(a, arrays, a.c, 0, a.c);
}

template <class T>
inline void plane_gradient(const BatchNormGradientArgs& a, const void* coefficients, std::int64_t begin,
                           std::int64_t end) {
  each_plane(a, begin, end, [&](std::int64_t run, std::int64_t at, const Runs& r) FUSEDSTEP_LAMBDA {
    a.training ? differentiate_runs<T>(a, run, at, r, per_run<T, Gradient>(coefficients, a.c, run))
               : differentiate_runs<T>(a, run, at, r, per_run<T, Scaled>(coefficients, a.c, run));
  });
  if (a.stream) end_stream();
}

template <class T, template <class> class Coefficients>
inline void differentiate_group(const BatchNormGradientArgs& a, std::int64_t c, int count) {
  const OfGroup<T, Coefficients> coefficients(a, c, count);
  for (std::int64_t sample = 0; sample < a.n; ++sample) {
    differentiate_runs<T>(a, sample * a.c + c, 0, {count, a.l, a.l, mask_words(a.l)}, coefficients.of_sample(count));
  }
}

template <class T>
void backward_group(const BatchNormGradientArgs& a, std::int64_t c, int count) {
  TwoDoubles sum_dy[kGroup], sum_dy_d[kGroup];
  a.mask ? group_gradient_sums<T, true>(a, c, count, sum_dy, sum_dy_d)
         : group_gradient_sums<T, false>(a, c, count, sum_dy, sum_dy_d);
  for (int k = 0; k < count; ++k) take_gradient_sums(a, c + k, sum_dy[k], sum_dy_d[k]);
  a.training ? differentiate_group<T, Gradient>(a, c, count) : differentiate_group<T, Scaled>(a, c, count);
}

template <class T>
inline void backward_planes(const BatchNormGradientArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = plane_blocks(a.n, a.l), group = group_of<T>(a, 2);
  if (group > 1) {
    for (std::int64_t c = begin; c < end; c += group) {
      backward_group<T>(a, c, int(end - c < group ? end - c : group));
    }
    if (a.stream) end_stream();
    return;
  }
  for (std::int64_t c = begin; c < end; ++c) {
    TwoDoubles sum_dy = {0.0, 0.0}, sum_dy_d = {0.0, 0.0};
    for (std::int64_t block = 0; block < blocks; ++block) {
      double sums[2];
      a.mask ? block_gradient_sums<T, true>(a, c, block, sums) : block_gradient_sums<T, false>(a, c, block, sums);
      gather(sum_dy, block_sum<false>(sums));
      gather(sum_dy_d, block_sum<false>(sums + 1));
    }
    take_gradient_sums(a, c, sum_dy, sum_dy_d);
    each_plane_from_behind(a, c, [&](std::int64_t run, std::int64_t at, const Runs& r) FUSEDSTEP_LAMBDA {
      a.training ? differentiate_runs<T>(a, run, at, r, of_channel<T, Gradient>(a, c))
                 : differentiate_runs<T>(a, run, at, r, of_channel<T, Scaled>(a, c));
    });
  }
  if (a.stream) end_stream();
}

}  // namespace fusedstep::FUSEDSTEP_SET
