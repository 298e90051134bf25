// Batch normalization of rows (n, c): memory is read in order, channels across the lanes. Rows of few channels are
// summed several at a time, as one wide row in which every place is a channel; at the end the places of a channel are
// added up.
#pragma once

#include "kernels/batch_norm/batch_norm.h"

namespace fusedstep::FUSEDSTEP_SET {

// Rows added up in registers before the sums go back to memory.
inline constexpr int kRowsAtOnce = 8;
// Of wide rows fewer: lines that lie so far apart share few places of the first-level cache.
inline constexpr std::int64_t kWide = 512;
inline constexpr int kWideAtOnce = 2;

// How many values ahead rows are prefetched, rounded to whole groups of rows.
inline constexpr std::int64_t kRowsAhead = 4096;
constexpr std::int64_t rows_ahead(std::int64_t c) {
  const std::int64_t group = kRowsAtOnce * row_width(c);
  return (kRowsAhead + group - 1) / group * group;
}

// sums[place] += the terms of `rows` wide rows from value `at` on. term<N>(offset of the value, place, lanes) gives the
// terms of N lanes.
template <bool Exact, class Term>
FUSEDSTEP_INLINE void add_rows(double* sums, std::int64_t width, std::int64_t at, int rows, std::int64_t places,
                               Term term) {
  constexpr int lanes = kSummed<Exact> < kLanes ? kSummed<Exact> : kLanes;
  using V = Pack<double, lanes>;
  const std::int64_t pitch = width + kPadding;
  const auto add = [&](std::int64_t j, std::int64_t n) FUSEDSTEP_LAMBDA {
    Sums<Exact, V> first_sum, second_sum;
    first_sum.read(sums + j, pitch);
    second_sum.read(sums + j + kWords<Exact> * pitch, pitch);
    for (int r = 0; r < rows; ++r) {
      const Terms<V> t = term.template operator()<lanes>(at + r * width + j, j, n);
      first_sum.add(t.u, t.u_low);
      second_sum.add(t.v, V{});
    }
    first_sum.write(sums + j, pitch);
    second_sum.write(sums + j + kWords<Exact> * pitch, pitch);
  };
  std::int64_t j = 0;
  for (; j + lanes <= places; j += lanes) add(j, lanes);
  if (j < places) add(j, places - j);
}

// Items are blocks of wide rows; the last row may be incomplete.
template <bool Exact, class Args, class Term>
FUSEDSTEP_INLINE void sum_rows(const Args& a, double* workspace, std::int64_t begin, std::int64_t end, Term term) {
  const std::int64_t width = row_width(a.c), pitch = width + kPadding, values = a.n * a.c;
  for (std::int64_t block = begin; block < end; ++block) {
    double* sums = workspace + block * 2 * kWords<Exact> * pitch;
    for (std::int64_t k = 0; k < 2 * kWords<Exact> * pitch; ++k) sums[k] = 0.0;
    std::int64_t at = block * block_rows(width) * width;
    const std::int64_t stop = at + block_rows(width) * width < values ? at + block_rows(width) * width : values;
    if (width < kWide) {
      for (; at + kRowsAtOnce * width <= stop; at += kRowsAtOnce * width) {
        add_rows<Exact>(sums, width, at, kRowsAtOnce, width, term);
      }
    }
    for (; at + kWideAtOnce * width <= stop; at += kWideAtOnce * width) {
      add_rows<Exact>(sums, width, at, kWideAtOnce, width, term);
    }
    for (; at + width <= stop; at += width) add_rows<Exact>(sums, width, at, 1, width, term);
    if (at < stop) add_rows<Exact>(sums, width, at, 1, stop - at, term);
  }
}

// The sums of every place over all blocks, written behind the blocks in the workspace: high parts, then low parts.
template <bool Exact, class Args>
inline const double* add_blocks(const Args& a, double* workspace, int sum) {
  const std::int64_t width = row_width(a.c), pitch = width + kPadding, blocks = row_blocks(a.n, a.c);
  double* totals = workspace + (blocks * kWords<Exact> + sum) * 2 * pitch;
  each_lanes(width, [&](std::int64_t j, std::int64_t) FUSEDSTEP_LAMBDA {
    Sums<true, Doubles> total;
    for (std::int64_t block = 0; block < blocks; ++block) {
      const double* sums = workspace + (block * 2 + sum) * kWords<Exact> * pitch + j;
      total.add(load_wide(sums, kLanes), Exact ? load_wide(sums + pitch, kLanes) : Doubles{});
    }
    total.write(totals + j, pitch);
  });
  return totals;
}

// The sum of channel c over all its places.
FUSEDSTEP_INLINE TwoDoubles add_places(const double* totals, std::int64_t channels, std::int64_t c) {
  const std::int64_t width = row_width(channels);
  TwoDoubles total = {0.0, 0.0};
  for (std::int64_t place = c; place < width; place += channels) {
    gather(total, {totals[place], totals[width + kPadding + place]});
  }
  return total;
}

template <class V>
inline void repeat(V* values, std::int64_t c, std::int64_t period) {
  for (std::int64_t k = c; k < period + kPadding; ++k) values[k] = values[k - c];
}

template <class T>
inline void row_pivots(const BatchNormArgs& a) {
  const std::int64_t rows = a.n < kPivotValues ? a.n : kPivotValues;
  const T* x = static_cast<const T*>(a.x);
  each_lanes(a.c, [&](std::int64_t j, std::int64_t n) FUSEDSTEP_LAMBDA {
    Doubles sum = {};
    for (std::int64_t r = 0; r < rows; ++r) sum = sum + load_wide(x + r * a.c + j, n);
    store(a.pivot + j, sum, n);
  });
  for (std::int64_t c = 0; c < a.c; ++c) {
    a.pivot[c] = double(typename Arithmetic<T>::Scalar(a.pivot[c] / double(rows)));
  }
  repeat(a.pivot, a.c, row_width(a.c));
}

template <class T, bool Exact>
inline void row_moments(const BatchNormArgs& a, double* workspace, std::int64_t begin, std::int64_t end) {
  const T* x = static_cast<const T*>(a.x);
  const std::int64_t ahead = rows_ahead(a.c);
  sum_rows<Exact>(a, workspace, begin, end,
                  [&]<int N>(std::int64_t i, std::int64_t j, std::int64_t n) FUSEDSTEP_LAMBDA {
                    __builtin_prefetch(x + i + ahead, 0, 2);
                    return moment_terms<Exact>(load_wide<N>(x + i, n), load_wide<N>(a.pivot + j, N), n);
                  });
}

template <bool Exact>
inline void row_statistics(const BatchNormArgs& a, double* workspace) {
  const double *sum = add_blocks<Exact>(a, workspace, 0), *squares = add_blocks<Exact>(a, workspace, 1);
  for (std::int64_t c = 0; c < a.c; ++c) {
    take_statistics(a, c, a.pivot[c], add_places(sum, a.c, c), add_places(squares, a.c, c));
  }
}

// The coefficients of all channels along a wide row.
template <class V, template <class> class Coefficients, class Args>
inline void lay_out_rows(const Args& a, void* out) {
  const std::int64_t period = row_width(a.c), pitch = period + kPadding;
  V* arrays = static_cast<V*>(out);
  lay_out<V, Coefficients>(a, arrays, pitch, 0, a.c);
  for (int k = 0; k < Coefficients<V>::values; ++k) repeat(arrays + k * pitch, a.c, period);
}

// Coefficients along rows; `place` is that of the next value.
template <class Scalar, template <class> class Coefficients>
struct Repeated {
  using Lanes = typename Arithmetic<Scalar>::Lanes;
  const Scalar* arrays;
  std::int64_t period, place;

  FUSEDSTEP_INLINE void begin() {}
  FUSEDSTEP_INLINE void take(const Repeated& other) { place = other.place; }
  FUSEDSTEP_INLINE Coefficients<Lanes> next(std::int64_t n) {
    const std::int64_t pitch = period + kPadding;
    const auto coefficients = [&]<int... K>(std::integer_sequence<int, K...>) FUSEDSTEP_LAMBDA {
      return Coefficients<Lanes>{load(arrays + K * pitch + place)...};
    }(std::make_integer_sequence<int, Coefficients<Lanes>::values>());
    place += n;
    if (place >= period) place -= period;
    return coefficients;
  }
};

template <class T, template <class> class Coefficients>
inline void normalize_rows(const BatchNormArgs& a, const void* arrays, std::int64_t begin, std::int64_t end) {
  const std::int64_t period = row_width(a.c);
  using Scalar = typename Arithmetic<T>::Scalar;
  const Repeated<Scalar, Coefficients> coefficients = {static_cast<const Scalar*>(arrays), period, begin % period};
  normalize(static_cast<T*>(a.y) + begin, static_cast<const T*>(a.x) + begin,
            a.residual ? static_cast<const T*>(a.residual) + begin : nullptr, a.mask ? a.mask + begin / 16 : nullptr,
            {1, end - begin, 0, 0}, a.stream, coefficients);
}

// Items are chunks. The last ones come first: the statistics have read them last, so the cache still holds them. So
// many together are taken forwards, which the processor's own prefetch follows.
inline constexpr std::int64_t kChunksAtOnce = 64;
template <class Apply>
FUSEDSTEP_INLINE void each_chunk_from_behind(std::int64_t values, std::int64_t begin, std::int64_t end, Apply apply) {
  for (std::int64_t stop = end; stop > begin; stop -= kChunksAtOnce) {
    const std::int64_t start = stop - begin < kChunksAtOnce ? begin : stop - kChunksAtOnce;
    apply(start * kChunk, stop * kChunk < values ? stop * kChunk : values);
  }
}

template <class T>
inline void row_coefficients(const BatchNormArgs& a, void* out) {
  using Scalar = typename Arithmetic<T>::Scalar;
  a.folded ? lay_out_rows<Scalar, Folded>(a, out) : lay_out_rows<Scalar, Affine>(a, out);
}

template <class T>
inline void apply_rows(const BatchNormArgs& a, const void* coefficients, std::int64_t begin, std::int64_t end) {
  each_chunk_from_behind(a.n * a.c, begin, end, [&](std::int64_t from, std::int64_t to) FUSEDSTEP_LAMBDA {
    a.folded ? normalize_rows<T, Folded>(a, coefficients, from, to)
             : normalize_rows<T, Affine>(a, coefficients, from, to);
  });
  if (a.stream) end_stream();
}

template <class T, bool Relu>
inline void row_gradient_sums_of(const BatchNormGradientArgs& a, double* workspace, std::int64_t begin,
                                 std::int64_t end) {
  const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy);
  const std::int64_t ahead = rows_ahead(a.c);
  sum_rows<false>(
      a, workspace, begin, end, [&]<int N>(std::int64_t i, std::int64_t j, std::int64_t n) FUSEDSTEP_LAMBDA {
        using V = Pack<double, N>;
        __builtin_prefetch(x + i + ahead, 0, 2);
        __builtin_prefetch(dy + i + ahead, 0, 2);
        V g;
        if constexpr (Relu) {
          g = load_kept<N>(dy + i, n, bits_at(a.mask, i));
        } else {
          g = load_wide<N>(dy + i, n);
        }
        return Terms<V>{first(g, n), g * first(load_wide<N>(x + i, n) - load_wide<N>(a.mean + j, N), n), V{}};
      });
}

template <class T>
inline void row_gradient_sums(const BatchNormGradientArgs& a, double* workspace, std::int64_t begin, std::int64_t end) {
  a.mask ? row_gradient_sums_of<T, true>(a, workspace, begin, end)
         : row_gradient_sums_of<T, false>(a, workspace, begin, end);
}

inline void row_gradient_totals(const BatchNormGradientArgs& a, double* workspace) {
  const double *dy = add_blocks<false>(a, workspace, 0), *dy_d = add_blocks<false>(a, workspace, 1);
  for (std::int64_t c = 0; c < a.c; ++c) {
    take_gradient_sums(a, c, add_places(dy, a.c, c), add_places(dy_d, a.c, c));
  }
}

template <class T>
inline void row_gradient_coefficients(const BatchNormGradientArgs& a, void* out) {
  using Scalar = typename Arithmetic<T>::Scalar;
  a.training ? lay_out_rows<Scalar, Gradient>(a, out) : lay_out_rows<Scalar, Scaled>(a, out);
}

template <class T, template <class> class Coefficients>
inline void differentiate_rows(const BatchNormGradientArgs& a, const void* arrays, std::int64_t begin,
                               std::int64_t end) {
  const std::int64_t period = row_width(a.c);
  using Scalar = typename Arithmetic<T>::Scalar;
  const Repeated<Scalar, Coefficients> coefficients = {static_cast<const Scalar*>(arrays), period, begin % period};
  differentiate(static_cast<T*>(a.dx) + begin, a.dresidual ? static_cast<T*>(a.dresidual) + begin : nullptr,
                static_cast<const T*>(a.dy) + begin, static_cast<const T*>(a.x) + begin,
                a.mask ? a.mask + begin / 16 : nullptr, {1, end - begin, 0, 0}, a.stream, coefficients);
}

template <class T>
inline void row_gradient(const BatchNormGradientArgs& a, const void* coefficients, std::int64_t begin,
                         std::int64_t end) {
  each_chunk_from_behind(a.n * a.c, begin, end, [&](std::int64_t from, std::int64_t to) FUSEDSTEP_LAMBDA {
    a.training ? differentiate_rows<T, Gradient>(a, coefficients, from, to)
               : differentiate_rows<T, Scaled>(a, coefficients, from, to);
  });
  if (a.stream) end_stream();
}

}  // namespace fusedstep::FUSEDSTEP_SET
