// Batch normalization of planes (n, c, l).
#pragma once

#include "kernels/batch_norm.h"

namespace fusedstep::FUSEDSTEP_SET {

// So many values ahead of what is summed the planes are fetched, whole planes at a time: the processor's own prefetch
// ends with each.
inline constexpr std::int64_t kPlanesAhead = 128;
constexpr std::int64_t planes_ahead(std::int64_t c, std::int64_t l) { return c * l * (1 + kPlanesAhead / l); }

FUSEDSTEP_INLINE void fetch_line(const void* p) { __builtin_prefetch(p, 0, 2); }

// A block of a channel: the planes [plane, plane + runs), or from `at` on a part of one.
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

// Adds up a block's pairs of terms into two sums: term(offset of the value in the array, lanes).
template <bool Exact, class Args, class Term>
FUSEDSTEP_INLINE void sum_block(const Args& a, std::int64_t c, std::int64_t block, double* sums, Term term) {
  Sums32<Exact> first_sum, second_sum;
  const PlanesBlock b = block_of(a.n, a.l, block);
  for (std::int64_t k = 0; k < b.runs; ++k) {
    const std::int64_t run = (b.plane + k) * a.c + c, offset = run * a.l + b.at;
    each_half(b.l, [&](std::int64_t i, std::int64_t n, int half) FUSEDSTEP_LAMBDA {
      const Terms t = term(offset + i, run, b.at + i, n);
      first_sum.half[half].add(t.u, t.u_low);
      second_sum.half[half].add(t.v, zeros());
    });
  }
  const TwoDoubles u = first_sum.total(), v = second_sum.total();
  sums[0] = u.high;
  sums[kWords<Exact>] = v.high;
  if constexpr (Exact) {
    sums[1] = u.low;
    sums[3] = v.low;
  }
}

template <bool Exact>
FUSEDSTEP_INLINE TwoDoubles block_sum(const double* sums) {
  return {sums[0], Exact ? sums[1] : 0.0};
}

template <class T>
inline double plane_pivot(const T* plane, std::int64_t l) {
  const std::int64_t n = l < kPivotValues ? l : kPivotValues;
  const Wide first_values = load_wide(plane, n);
  const double mean = LaneSum{{first_values, zeros()}}.total() / double(n);
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
  sum_block<Exact>(a, c, block, sums, [&](std::int64_t i, std::int64_t, std::int64_t, std::int64_t n) FUSEDSTEP_LAMBDA {
    fetch_line(x + i + ahead);
    return moment_terms<Exact>(load_wide(x + i, n), zeros() + pivot, n);
  });
}

// Items: blocks of channels.
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

template <class T, template <class> class Coefficients>
inline void normalize_block(const BatchNormArgs& a, std::int64_t c, std::int64_t block) {
  using Scalar = typename Arithmetic<T>::Scalar;
  const Constant<Coefficients<Scalar>> coefficients = {Coefficients<Scalar>::of(a, c)};
  const PlanesBlock b = block_of(a.n, a.l, block);
  const std::int64_t run = b.plane * a.c + c, offset = run * a.l + b.at, words = mask_words(a.l);
  normalize(static_cast<T*>(a.y) + offset, static_cast<const T*>(a.x) + offset,
            a.residual ? static_cast<const T*>(a.residual) + offset : nullptr,
            a.mask ? a.mask + run * words + b.at / 16 : nullptr, {b.runs, b.l, a.c * a.l, a.c * words}, a.stream,
            coefficients);
}

// Items: blocks of channels.
template <class T>
inline void apply_planes(const BatchNormArgs& a, const void*, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = plane_blocks(a.n, a.l);
  for (std::int64_t item = begin; item < end; ++item) {
    a.folded ? normalize_block<T, Folded>(a, item / blocks, item % blocks)
             : normalize_block<T, Affine>(a, item / blocks, item % blocks);
  }
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
    // What was read last is likeliest still in the cache.
    for (std::int64_t block = blocks - 1; block >= 0; --block) normalize_block<T, Affine>(a, c, block);
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
                   [&](std::int64_t i, std::int64_t run, std::int64_t at, std::int64_t n) FUSEDSTEP_LAMBDA {
                     fetch_line(x + i + ahead);
                     fetch_line(dy + i + ahead);
                     Wide g = load_wide(dy + i, n);
                     if constexpr (Relu) g = keep(g, bits_at(a.mask + run * words, at));
                     return Terms{g, g * first(load_wide(x + i, n) - mean, n), zeros()};
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

template <class T, template <class> class Coefficients>
inline void differentiate_block(const BatchNormGradientArgs& a, std::int64_t c, std::int64_t block) {
  using Scalar = typename Arithmetic<T>::Scalar;
  const Constant<Coefficients<Scalar>> coefficients = {Coefficients<Scalar>::of(a, c)};
  const PlanesBlock b = block_of(a.n, a.l, block);
  const std::int64_t run = b.plane * a.c + c, offset = run * a.l + b.at, words = mask_words(a.l);
  differentiate(static_cast<T*>(a.dx) + offset, a.dresidual ? static_cast<T*>(a.dresidual) + offset : nullptr,
                static_cast<const T*>(a.dy) + offset, static_cast<const T*>(a.x) + offset,
                a.mask ? a.mask + run * words + b.at / 16 : nullptr, {b.runs, b.l, a.c * a.l, a.c * words}, a.stream,
                coefficients);
}

template <class T>
inline void differentiate_any(const BatchNormGradientArgs& a, std::int64_t c, std::int64_t block) {
  a.training ? differentiate_block<T, Gradient>(a, c, block) : differentiate_block<T, Scaled>(a, c, block);
}

template <class T>
inline void plane_gradient(const BatchNormGradientArgs& a, const void*, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = plane_blocks(a.n, a.l);
  for (std::int64_t item = begin; item < end; ++item) differentiate_any<T>(a, item / blocks, item % blocks);
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
    for (std::int64_t block = blocks - 1; block >= 0; --block) differentiate_any<T>(a, c, block);
  }
  if (a.stream) end_stream();
}

}  // namespace fusedstep::FUSEDSTEP_SET
