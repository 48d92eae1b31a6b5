// From a row of logits to a token and its log-prob.
//
// The noise of a column is a pure function of (request seed, absolute position of the token being
// drawn, column), so a token depends neither on its batch nor on when it was scheduled. The
// log-prob is the trainer's own arithmetic: z_y/T - log_sum_exp(z/T) over the full vocabulary,
// whatever the filters left. Penalties and biases change z itself (adjust_logits): then the
// log-prob is that of the changed distribution.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/rollout/request.h"

namespace fathom {

/// One token to draw. Several draws may share a row of logits.
struct Draw {
  const float* logits;                      // [V], undivided
  const SamplingParams* params;             // temperature, top_p, top_k
  uint64_t seed;                            // request seed
  int64_t position;                         // absolute position of the token being drawn
  std::span<const int32_t> generated = {};  // the answer so far, for penalties
  std::span<const int32_t> forbidden = {};  // columns that may not be drawn
  const LogProbLists* lists = nullptr;      // null: none
};

struct DrawnToken {
  int32_t token_id;
  float log_prob;
  std::vector<TokenLogProb> top = {}, listed = {};  // of the same distribution as log_prob
};

/// token = argmax over the kept columns of z/T + gumbel noise, the lower id on a tie; at
/// temperature 0 (anything below 1e-6) the largest logit, the lower id on a tie, with its log-prob
/// at temperature 1.
///
/// Kept columns: order by (probability descending, id ascending); keep a column while its rank is
/// below top_k, the probabilities before it sum to at most top_p (fp64, not renormalised), and its
/// probability is at least min_p times the largest (fp64).
///
/// Holds scratch memory only; results do not depend on earlier calls. One caller at a time.
class Sampler {
 public:
  /// Threaded by draws. @param out as long as draws.
  /// Errors: UserError when a row holds NaN or infinity, or overflows when divided.
  void sample(const ExecContext& ctx, int64_t vocab_size, std::span<const Draw> draws,
              std::span<DrawnToken> out);

 private:
  std::vector<float> adjusted_;        // [draws, V] where penalties, biases or bans apply
  std::vector<float> scaled_;          // [draws, V] z/T where T is neither 0 nor 1
  std::vector<float> probs_;           // [draws, V] where a filter is on, as the next two
  std::vector<uint64_t> sort_keys_;    // [draws, V]
  std::vector<int32_t> kept_columns_;  // [draws, V]
};

/// Whether adjust_logits would change a row of this draw.
bool adjusts_logits(const Draw& draw);

/// out [V] = the draw's logits, changed in this order for every distinct token of `generated`,
/// which holds it n times: z -= frequency_penalty n + presence_penalty; z /= repetition_penalty
/// where z > 0, else z *= repetition_penalty; then z += logit_bias; then forbidden columns become
/// -1e30. Ids outside the vocabulary are ignored.
void adjust_logits(const Draw& draw, int64_t vocab_size, float* out);

/// Log-prob of `token_id` under a row of logits at temperature 1, and the lists.
/// @param logits [V], finite. Errors: UserError otherwise.
DrawnToken score_token(const ExecContext& ctx, const float* logits, int64_t vocab_size,
                       int32_t token_id, const LogProbLists& lists);

/// The noise of columns [first_column, first_column + count), for tests and analysis:
/// g = -log(E), E = -log(u), u = (r + 1/2) / 2^32, r = word (column mod 4) of
/// Philox4x32-10(key = seed, counter = {column / 4, 0, position low, position high}).
/// Above u = 1/2 E is computed from 1 - u, which keeps the 32 bits where fp32 u would round to 1.
void gumbel_noise(const ExecContext& ctx, uint64_t seed, int64_t position, int64_t first_column,
                  int64_t count, float* out);

}  // namespace fathom
