// A rule's loops over coded states. In one loop the processor decodes and encodes while it waits for the rule's
// divisions; in three loops the times would add up.
#pragma once

#include "kernels/step/fused_state.h"
#include "kernels/step/rule_loops.h"

namespace fusedstep::FUSEDSTEP_SET {

enum class Kind { whole, signed8, unsigned8, bfloat16 };

// How the k-th of the states that a variant keeps is stored.
template <class Rule, int V, Fused Way>
constexpr Kind kind_of(int k) {
  int state = 0;
  for (unsigned keeps = Rule::keeps[V];; keeps >>= 1, ++state) {
    if ((keeps & 1) != 0 && k-- == 0) break;
  }
  if (((Rule::exact | Rule::copies) >> state & 1) != 0) return Kind::whole;
  if (Way == kFusedBfloat16) return Kind::bfloat16;
  return (Rule::squares >> state & 1) != 0 ? Kind::unsigned8 : Kind::signed8;
}
constexpr Dtype dtype_of(Kind kind) {
  return kind == Kind::whole      ? Dtype::float32
         : kind == Kind::bfloat16 ? Dtype::bfloat16
         : kind == Kind::signed8  ? Dtype::signed8
                                  : Dtype::unsigned8;
}

template <Kind K>
FUSEDSTEP_INLINE void decode_stride(const FusedState& state, std::int64_t i) {
  constexpr bool is_signed = K == Kind::signed8;
  for (std::int64_t at = i; at < i + kStride; at += kLanes) {
    if constexpr (K == Kind::bfloat16) {
      store(state.now + at, load(static_cast<const BFloat16*>(state.stored) + at, kLanes));
    } else {
      store(state.now + at, decode_plain<is_signed>(static_cast<const std::uint8_t*>(state.stored) + at, state.scale));
    }
  }
}

// Not inlined: a NaN is rare.
__attribute__((noinline)) inline void encode_stride_with_nan(const float* from, BFloat16* to, RandomWords words) {
  encode_at_random<BFloat16>(from, to, kStride, words);
}

template <Kind K>
FUSEDSTEP_INLINE void encode_stride(const FusedState& state, RandomWords words, std::int64_t i) {
  static_assert(kStride == 2 * kLanes);
  constexpr bool is_signed = K == Kind::signed8;
  const float* from = state.before + i;
  const Bits near = words.load(i), far = words.load(i + kLanes);
  if constexpr (K == Kind::bfloat16) {
    auto* to = static_cast<BFloat16*>(state.stored_before) + i;
    const Floats v = load(from), w = load(from + kLanes);
    if constexpr (kVectorBytes == 64) {
      store_words(to, rounded_at_random(BFloat16{}, as<Bits>(v), near), kLanes);
      store_words(to + kLanes, rounded_at_random(BFloat16{}, as<Bits>(w), far), kLanes);
    } else if (bits_of(unordered(v, w)) != 0) [[unlikely]] {
      encode_stride_with_nan(from, to, {words.words + i, words.key});
    } else {
      store_words(to, high_words(as<Bits>(v) + near), kLanes);
      store_words(to + kLanes, high_words(as<Bits>(w) + far), kLanes);
    }
  } else {
    auto* to = static_cast<std::uint8_t*>(state.stored_before) + i;
    if constexpr (kVectorBytes == 64) {
      store_pack(to, encode_plain<is_signed>(load(from), state.scale_before, near));
      store_pack(to + kLanes, encode_plain<is_signed>(load(from + kLanes), state.scale_before, far));
    } else {
      store_pack(to, encode_many<is_signed>(from, state.scale_before, near, far));
    }
  }
}

template <Kind K>
FUSEDSTEP_INLINE Bits largest_stride(const FusedState& state, std::int64_t i, Bits largest) {
  for (std::int64_t at = i; at < i + kStride; at += kLanes) {
    largest = largest_of<K == Kind::signed8>(largest, load(state.now + at));
  }
  return largest;
}

template <class Rule, int V, bool Cautious, Fused Way, int... S>
FUSEDSTEP_INLINE void fused_elements(const typename Rule::template Coefficients<float>& c, float scale, const float* g,
                                     float* p, FusedState* states, std::integer_sequence<int, S...>) {
  constexpr Kind kinds[] = {kind_of<Rule, V, Way>(S)..., Kind::whole};
  float* const s[] = {(kinds[S] == Kind::whole ? static_cast<float*>(states[S].stored) : states[S].now)..., nullptr};
  // A copy, which stays in registers: the loop's stores might change the original.
  const FusedState local[] = {states[S]..., FusedState{}};
  const bool encodes = (... || (local[S].stored_before != nullptr));
  const auto words_of = [&](Kind kind, const FusedState& state) {
    const bool scaled = encodes && (kind == Kind::signed8 || kind == Kind::unsigned8);
    return scaled ? unscaled(state.words, state.scale_before) : state.words;
  };
  const RandomWords words[] = {words_of(kinds[S], local[S])..., RandomWords{}};
  Bits largest[sizeof...(S) + 1] = {};
  for (std::int64_t i = 0; i < kStrip; i += kStride) {
    fetch<false>(g + i + kCodedAhead);
    fetch<true>(p + i + kCodedAhead);
    const auto fetch_state = [&](Kind kind, const FusedState& state) FUSEDSTEP_LAMBDA {
      const std::int64_t item = item_bytes(dtype_of(kind));
      const char* line = static_cast<const char*>(state.stored) + (i + kCodedAhead) * item;
      __builtin_prefetch(line, 1);
      if (item == 4) __builtin_prefetch(line + 64, 1);
    };
    (fetch_state(kinds[S], local[S]), ...);
    const auto decode = [&]<int K>(std::integral_constant<int, K>) FUSEDSTEP_LAMBDA {
      if constexpr (kinds[K] != Kind::whole) decode_stride<kinds[K]>(local[K], i);
    };
    (decode(std::integral_constant<int, S>()), ...);
#pragma omp simd
    for (std::int64_t k = 0; k < kStride; ++k) {
      float x = p[i + k];
      float values[] = {s[S][i + k]..., 0.0f};
      update_element<Rule, V, Cautious>(c, scale, g[i + k], x, values[S]...);
      p[i + k] = x;
      ((s[S][i + k] = values[S]), ...);
    }
    const auto encode = [&]<int K>(std::integral_constant<int, K>) FUSEDSTEP_LAMBDA {
      if constexpr (kinds[K] == Kind::signed8 || kinds[K] == Kind::unsigned8) {
        largest[K] = largest_stride<kinds[K]>(local[K], i, largest[K]);
      }
      if constexpr (kinds[K] != Kind::whole) {
        if (encodes) encode_stride<kinds[K]>(local[K], words[K], i);
      }
    };
    (encode(std::integral_constant<int, S>()), ...);
  }
  ((states[S].largest = largest_lane(largest[S])), ...);
}

template <class Rule, int V, bool Cautious, Fused Way>
void fused_loop(const void* coefficients, double scale, const void* g, void* p, void* states) {
  const auto c = *static_cast<const typename Rule::template Coefficients<float>*>(coefficients);
  fused_elements<Rule, V, Cautious, Way>(c, float(scale), static_cast<const float*>(g), static_cast<float*>(p),
                                         static_cast<FusedState*>(states), kept_states<Rule, V>);
}

}  // namespace fusedstep::FUSEDSTEP_SET
