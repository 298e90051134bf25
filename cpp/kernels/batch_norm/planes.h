// Batch normalization of planes (n, c, l).
#pragma once

#include "kernels/batch_norm/batch_norm.h"

namespace fusedstep::FUSEDSTEP_SET {

// How many values ahead planes are prefetched, rounded to whole planes: the processor's own prefetch stops at the end
// of each.
inline constexpr std::int64_t kPlanesAhead = 128;
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

// Adds up the terms of a block into two sums. term<N>(offset of the value in the array, its run, its place in the run,
// lanes) gives the terms of N lanes. Each turn takes as many of the 32 lanes as the registers hold.
template <bool Exact, class Args, class Term>
FUSEDSTEP_INLINE void sum_block(const Args& a, std::int64_t c, std::int64_t block, double* sums, Term term) {
  constexpr int summed = kSummed<Exact>, lanes = summed < kLanes ? summed : kLanes, packs = summed / lanes;
  using V = Pack<double, lanes>;
  alignas(64) double first_lanes[kWords<Exact> * kSumLanes], second_lanes[kWords<Exact> * kSumLanes];
  clear(first_lanes);
  clear(second_lanes);
  const PlanesBlock b = block_of(a.n, a.l, block);
  const std::int64_t planes = summed == kSumLanes ? b.runs : b.l < kSumStrip ? kSumStrip / b.l : 1;
  const std::int64_t part = summed == kSumLanes || b.l < kSumStrip ? b.l : kSumStrip;
  for (std::int64_t plane = 0; plane < b.runs; plane += planes) {
    const std::int64_t end = b.runs - plane < planes ? b.runs : plane + planes;
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
  const TwoDoubles first_total = total_of<Exact>(first_lanes), second_total = total_of<Exact>(second_lanes);
  sums[0] = first_total.high;
  sums[kWords<Exact>] = second_total.high;
  if constexpr (Exact) {
    sums[1] = first_total.low;
    sums[3] = second_total.low;
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

template <class T, bool Exact>
__attribute__((noinline)) void block_moments(const BatchNormArgs& a, std::int64_t c, std::int64_t block, double pivot,
                                             double* sums) {
  const T* x = static_cast<const T*>(a.x);
  const std::int64_t ahead = planes_ahead(a.c, a.l);
  sum_block<Exact>(a, c, block, sums,
                   [&]<int N>(std::int64_t i, std::int64_t, std::int64_t, std::int64_t n) FUSEDSTEP_LAMBDA {
                     fetch_line(x + i + ahead);
                     return moment_terms<Exact>(load_wide<N>(x + i, n), spread<Pack<double, N>>(pivot), n);
                   });
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

// The runs of a block of channel c.
template <class Args>
FUSEDSTEP_INLINE Runs runs_of(const Args& a, const PlanesBlock& b) {
  return {b.runs, b.l, a.c * a.l, a.c * mask_words(a.l)};
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
  return PerRun<Scalar, Coefficients>{static_cast<const Scalar*>(arrays), channels, run % channels};
}
template <class T, template <class> class Coefficients, class Args>
FUSEDSTEP_INLINE auto of_channel(const Args& a, std::int64_t c) {
  return OfChannel<Coefficients<typename Arithmetic<T>::Scalar>, Args>(a, c);
}

template <class T>
inline void plane_coefficients(const BatchNormArgs& a, void* out) {
  auto* arrays = static_cast<typename Arithmetic<T>::Scalar*>(out);
  a.folded ? lay_out<typename Arithmetic<T>::Scalar, Folded>(a, arrays, a.c)
           : lay_out<typename Arithmetic<T>::Scalar, Affine>(a, arrays, a.c);
}

template <class T>
inline void apply_planes(const BatchNormArgs& a, const void* coefficients, std::int64_t begin, std::int64_t end) {
  each_plane(a, begin, end, [&](std::int64_t run, std::int64_t at, const Runs& r) FUSEDSTEP_LAMBDA {
    a.folded ? normalize_runs<T>(a, run, at, r, per_run<T, Folded>(coefficients, a.c, run))
             : normalize_runs<T>(a, run, at, r, per_run<T, Affine>(coefficients, a.c, run));
  });
  if (a.stream) end_stream();
}

template <class T>
inline void forward_planes(const BatchNormArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = plane_blocks(a.n, a.l);
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
    // Backwards: what was read last is likeliest still in the cache.
    for (std::int64_t block = blocks - 1; block >= 0; --block) {
      const PlanesBlock b = block_of(a.n, a.l, block);
      normalize_runs<T>(a, b.plane * a.c + c, b.at, runs_of(a, b), of_channel<T, Affine>(a, c));
    }
  }
  if (a.stream) end_stream();
}

template <class T, bool Relu>
__attribute__((noinline)) void block_gradient_sums(const BatchNormGradientArgs& a, std::int64_t c, std::int64_t block,
                                                   double* sums) {
  const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy);
  const double mean = a.mean[c];
  const std::int64_t ahead = planes_ahead(a.c, a.l), words = mask_words(a.l);
  sum_block<false>(a, c, block, sums,
                   [&]<int N>(std::int64_t i, std::int64_t run, std::int64_t at, std::int64_t n) FUSEDSTEP_LAMBDA {
                     using V = Pack<double, N>;
                     fetch_line(x + i + ahead);
                     fetch_line(dy + i + ahead);
                     V g;
                     if constexpr (Relu) {
                       g = load_kept<N>(dy + i, n, bits_at(a.mask + run * words, at));
                     } else {
                       g = load_wide<N>(dy + i, n);
                     }
                     return Terms<V>{g, g * first(load_wide<N>(x + i, n) - mean, n), V{}};
                   });
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
  a.training ? lay_out<typename Arithmetic<T>::Scalar, Gradient>(a, arrays, a.c)
             : lay_out<typename Arithmetic<T>::Scalar, Scaled>(a, arrays, a.c);
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

template <class T>
inline void backward_planes(const BatchNormGradientArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = plane_blocks(a.n, a.l);
  for (std::int64_t c = begin; c < end; ++c) {
    TwoDoubles sum_dy = {0.0, 0.0}, sum_dy_d = {0.0, 0.0};
    for (std::int64_t block = 0; block < blocks; ++block) {
      double sums[2];
      a.mask ? block_gradient_sums<T, true>(a, c, block, sums) : block_gradient_sums<T, false>(a, c, block, sums);
      gather(sum_dy, block_sum<false>(sums));
      gather(sum_dy_d, block_sum<false>(sums + 1));
    }
    take_gradient_sums(a, c, sum_dy, sum_dy_d);
    for (std::int64_t block = blocks - 1; block >= 0; --block) {
      const PlanesBlock b = block_of(a.n, a.l, block);
      const std::int64_t run = b.plane * a.c + c;
      a.training ? differentiate_runs<T>(a, run, b.at, runs_of(a, b), of_channel<T, Gradient>(a, c))
                 : differentiate_runs<T>(a, run, b.at, runs_of(a, b), of_channel<T, Scaled>(a, c));
    }
  }
  if (a.stream) end_stream();
}

}  // namespace fusedstep::FUSEDSTEP_SET
