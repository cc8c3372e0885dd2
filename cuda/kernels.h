// The launchers, one per operator of csrc/backend/operators.h, and what they share: the stream, the card, scratch memory, and
// the place where a kernel reports what it finds wrong in device memory. A launcher checks what it can on the host,
// enqueues, and never waits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "backend/operators.h"
#include "backend/ops.h"
#include "launch.h"

namespace diffqkv::cuda {

// What a kernel found in device memory that the call should not have held: the first such finding, as an
// ERR_INVALID_ARGUMENT, is thrown by the next call that waits for the device.
struct Finding {
  enum Kind : uint32_t { none, token, position, kv_len };
  uint32_t kind;
  int32_t index, value, limit;  // argument[index] is `value`, and must lie in [0, limit) or, for kv_len, [0, limit]
};

// What launchers are given. Scratch memory is the stream's: a launcher may use it for the kernels that it enqueues in one
// call, and finds it again with unknown contents in the next.
class Context {
 public:
  virtual ~Context() = default;
  cudaStream_t stream = nullptr;
  int num_multiprocessors = 1;
  size_t max_shared_bytes = 99 * 1024;  // of a block
  Finding* finding = nullptr;           // device-visible
  // At least `bytes`, aligned to 256.
  virtual void* scratch(size_t bytes) = 0;
  // At least `count` words that are 0; a kernel must leave them 0.
  virtual uint32_t* zeroed_words(size_t count) = 0;
};

// The launchers: `void embed(const EmbedParams& p, Context& context);` and so on.
#define DIFFQKV_LAUNCHER(name, Params) void name(const Params& p, Context& context);
DIFFQKV_OPERATORS(DIFFQKV_LAUNCHER)
#undef DIFFQKV_LAUNCHER

// Attention of any head size up to 576 and any pair of types of K and V, without tensor cores: what the kernels of
// attention_prefill.cu, attention_decode.cu and attention_selective.cu do not take goes here.
void attention_plain_prefill(const AttentionPrefillParams& p, Context& context);
void attention_plain_decode(const AttentionDecodeParams& p, Context& context);

// How the scores of attention follow from its products q.k, which kernels negate if sm_scale is negative: score = scale *
// product, or with a soft cap score = scale * tanh(cap_factor * product).
struct ScoreScale {
  float scale;       // |sm_scale|, or softcap
  float scale_log2;  // scale log2(e), or the largest float if that is infinite: infinity times a difference of 0 is NaN
  float cap_factor;  // 0: no cap. Where |sm_scale| / softcap rounds to 0, a cap would change no score
};
inline ScoreScale score_scale_of(const AttentionParams& p) {
  constexpr float kMost = std::numeric_limits<float>::max();
  ScoreScale s = {};
  s.scale = std::fabs(p.sm_scale);
  if (p.softcap > 0) s.cap_factor = std::min(s.scale / p.softcap, kMost);
  if (s.cap_factor > 0) s.scale = p.softcap;
  s.scale_log2 = std::min(s.scale * 1.44269504088896341f, kMost);
  return s;
}

// The number of keys of a query with a window; without one, more than any query has.
inline int window_of(const AttentionParams& p) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  return static_cast<int>(p.window > 0 ? std::min(p.window, kMost) : kMost);
}

// Selective V: false where the kernels of attention_selective.cu do not take the call.
bool attention_selective(const AttentionDecodeParams& p, Context& context);

}  // namespace diffqkv::cuda
