// Steps of coded arrays: some are not stored in float, the dtype of the arithmetic, or are rounded, or copied.
#pragma once

#include "kernels/step/block.h"
#include "kernels/step/fused_state.h"
#include "kernels/step/rounding.h"

namespace fusedstep::FUSEDSTEP_SET {

// Decoded elements from `at` on, and the scales of 8-bit states.
struct Strip {
  alignas(64) float p[kStrip], raw[kStrip], s[kMaxStates][kStrip];
  std::int64_t at = 0, count = 0;
  float scale[kMaxStates];
};
static_assert(kStrip == kScaled);

inline void start_strip(const StepArgs& a, std::int64_t at, std::int64_t count, Strip& strip) {
  strip.at = at;
  strip.count = count;
  if (count == 0) return;
  for (int k = 0; k < a.states; ++k) {
    if (is_code(a.state_dtype[k])) strip.scale[k] = a.scales[k][at / kScaled];
  }
}

inline void decode_values(const StepArgs& a, Strip& strip) {
  const std::int64_t at = strip.at, n = strip.count;
  if (a.copy != nullptr && a.follows) follow_copy(static_cast<float*>(a.param) + at, a.copy, a.copy_dtype, at, n);
  decode(a.param_dtype, a.param, 0.0f, at, n, strip.p);
  decode(a.grad_dtype, a.grad, 0.0f, at, n, strip.raw);
}
inline void decode_states(const StepArgs& a, Strip& strip) {
  for (int k = 0; k < a.states; ++k) {
    decode(a.state_dtype[k], a.state[k], strip.scale[k], strip.at, strip.count, strip.s[k]);
  }
}

// The strip as a block. Arrays of floats are used where they are.
inline Block<float> block_of(const StepArgs& a, Strip& strip, float* g_scratch) {
  const auto place = [&](Dtype stored, const void* array, float* decoded) {
    return stored == Dtype::float32 ? static_cast<float*>(const_cast<void*>(array)) + strip.at : decoded;
  };
  Block<float> block;
  block.p = place(a.param_dtype, a.param, strip.p);
  block.raw = place(a.grad_dtype, a.grad, strip.raw);
  for (int k = 0; k < a.states; ++k) block.s[k] = place(a.state_dtype[k], a.state[k], strip.s[k]);
  block.g = gradient_stage(a, block.raw, block.p, strip.count, strip.count, g_scratch);
  return block;
}

// One thread's part of a tensor, strip by strip. The states of a strip are encoded with the next one.
class CodedRun {
 public:
  CodedRun(const StepArgs& a, std::int64_t begin, std::int64_t end, Rounding& rounding)
      : a_(a), begin_(begin), end_(end), rounding_(rounding) {
    rounding.prepare(a);
  }

  // Adds the sums of telemetry to `lanes` unless it is null. This thread's elements end at `reach`.
  void run(std::int64_t reach, TelemetryLanes* lanes) {
    for (std::int64_t at = begin_; at < end_; at += kStrip) {
      start_strip(a_, at, end_ - at < kStrip ? end_ - at : kStrip, *now_);
      decode_values(a_, *now_);
      const Block<float> block = block_of(a_, *now_, g_scratch_);
      const bool fused = lanes == nullptr && a_.fused != nullptr && now_->count == kStrip && has_plain_scales(*now_);
      if (at + kCodedAhead < reach) fetch_strip(at + kCodedAhead, fused);
      if (fused) {
        run_fused(block);
      } else {
        decode_states(a_, *now_);
        // It prefetches in arrays of floats; of decoded ones it prefetches, harmlessly, what lies behind the strip.
        run_block(a_, block, now_->count, reach - at, lanes);
        for (int k = 0; k < a_.states; ++k) {
          if (a_.state_dtype[k] == Dtype::signed8) set_scale(k, scale_of<true>(now_->s[k], now_->count));
          if (a_.state_dtype[k] == Dtype::unsigned8) set_scale(k, scale_of<false>(now_->s[k], now_->count));
        }
        encode_states();
      }
      if (a_.ema != nullptr) {
        average_stage(a_, block.p, static_cast<float*>(a_.ema) + at, now_->count, reach - at);
      }
      encode_param();
      std::swap(before_, now_);
    }
    encode_states();
  }

 private:
  bool has_plain_scales(const Strip& strip) const {
    bool plain = true;
    for (int k = 0; k < a_.states; ++k) {
      if (is_code(a_.state_dtype[k])) plain = plain && is_plain(strip.scale[k]);
    }
    return plain;
  }

  void run_fused(const Block<float>& block) {
    if (before_->count > 0 && !has_plain_scales(*before_)) encode_states();
    const bool waits = before_->count > 0;
    FusedState states[kMaxStates];
    for (int k = 0; k < a_.states; ++k) {
      states[k] = {};
      char* const array = static_cast<char*>(a_.state[k]);
      const std::int64_t item = item_bytes(a_.state_dtype[k]);
      states[k].stored = array + now_->at * item;
      states[k].now = now_->s[k];
      states[k].scale = now_->scale[k];
      if (!waits || a_.state_dtype[k] == Dtype::float32) continue;
      states[k].stored_before = array + before_->at * item;
      states[k].before = before_->s[k];
      states[k].scale_before = before_->scale[k];
      states[k].words = rounding_.words(k, before_->at, kStrip);
    }
    a_.fused(a_.coefficients, a_.scale, block.g, block.p, states);
    before_->count = 0;
    for (int k = 0; k < a_.states; ++k) {
      if (a_.state_dtype[k] == Dtype::signed8) set_scale(k, scale_from<true>(states[k].largest));
      if (a_.state_dtype[k] == Dtype::unsigned8) set_scale(k, scale_from<false>(states[k].largest));
    }
  }

  // Prefetches the strip from `at` on, apart from what the rule's loop prefetches. Inlined: GCC 12 drops calls that
  // only prefetch.
  FUSEDSTEP_INLINE void fetch_strip(std::int64_t at, bool fused) const {
    const auto fetch_array = [=](const void* array, Dtype stored) FUSEDSTEP_LAMBDA {
      if (stored == Dtype::float32) return;
      const char* line = static_cast<const char*>(array) + at * item_bytes(stored);
      for (std::int64_t byte = 0; byte < kStrip * item_bytes(stored); byte += 64) __builtin_prefetch(line + byte, 1);
    };
    fetch_array(a_.param, a_.param_dtype);
    fetch_array(a_.grad, a_.grad_dtype);
    if (a_.copy != nullptr) fetch_array(a_.copy, a_.copy_dtype);
    for (int k = 0; k < a_.states && !fused; ++k) fetch_array(a_.state[k], a_.state_dtype[k]);
  }

  void set_scale(int k, float scale) { a_.scales[k][now_->at / kScaled] = now_->scale[k] = scale; }

  // Encodes the states of the strip before, unless that has been done.
  void encode_states() {
    Strip& strip = *before_;
    for (int k = 0; k < a_.states && strip.count > 0; ++k) {
      if (a_.state_dtype[k] == Dtype::float32) continue;
      const RandomWords words = rounding_.words(k, strip.at, strip.count);
      encode(a_.state_dtype[k], a_.state[k], strip.scale[k], strip.at, strip.count, strip.s[k], words);
    }
    strip.count = 0;
  }

  void encode_param() {
    const std::int64_t at = now_->at, n = now_->count;
    if (a_.random_param) {
      encode(a_.param_dtype, a_.param, 0.0f, at, n, now_->p, rounding_.words(kParamStream, at, n));
    } else if (a_.copy != nullptr) {
      encode_nearest(a_.copy_dtype, a_.copy, at, n, static_cast<const float*>(a_.param) + at);
    } else {
      encode_nearest(a_.param_dtype, a_.param, at, n, now_->p);
    }
  }

  const StepArgs& a_;
  const std::int64_t begin_, end_;
  Rounding& rounding_;
  Strip strips_[2];
  Strip *before_ = strips_, *now_ = strips_ + 1;
  alignas(64) float g_scratch_[kStrip];
};

}  // namespace fusedstep::FUSEDSTEP_SET
