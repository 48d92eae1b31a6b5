// Log-probs, logits and gradients of given token sequences: the program seen from outside.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/model/forward.h"
#include "fathom/parallel/rank_groups.h"

namespace fathom {

struct ScoreOptions {
  bool with_logits = false;
  bool with_gradients = false;
  bool with_mtp = false;
  int64_t chunk_tokens = 2048;  // sequences run through cached state in pieces of this many tokens
};

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// Reads lines {"token_ids": [...]}. All lines are checked before anything runs.
/// Errors: UserError naming the file and the 1-based line: bad JSON, no or empty token_ids, an id
/// outside the vocabulary, more tokens than max_position_embeddings.
std::vector<std::vector<int32_t>> read_token_lines(const std::string& path,
                                                   const ModelConfig& config);

/// For sequence i (0-based): logprobs.<i> f32 [n−1] (token t+1 given 0..t, temperature 1), and
/// where asked logits.<i> [n, V], mtp_logits.<i> [n−1, V] (row t from the streams at t and token
/// t+1). With gradients: loss f32 [1], the mean of −logprobs over all predicted tokens of all
/// sequences, and grad.<official name> in the decoded shape for every trained tensor of the main
/// model. Errors: UserError when MTP is asked of a model without an MTP block.
/// @param groups ranks with the same sequences and their parts of the weights, who share the work.
/// Rank 0 gets all of the result, the others the loss alone or nothing. Log-probs, logits and the
/// loss have the same bits under any layout; gradients as docs/numerics.md says.
NamedTensors score(const ExecContext& ctx, Weights& weights,
                   const std::vector<std::vector<int32_t>>& sequences, const ScoreOptions& options,
                   const RankGroups& groups = {});

}  // namespace fathom
