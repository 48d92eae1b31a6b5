// Supervised training of a model on prompt/answer rows: how a base model is made.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/config/options.h"
#include "fathom/model/weights.h"
#include "fathom/parallel/rank_groups.h"
#include "fathom/tokenizer/tokenizer.h"
#include "fathom/train/supervised.h"

namespace fathom {

/// Reads rows of --prompt-data: input_key (a string or messages) and response_key (the answer). The
/// prompt is rendered as in training, the answer is encoded behind it, the end token added when
/// append_eos; the answer's tokens are what is learned.
/// Errors: UserError naming file, line and key.
std::vector<SupervisedExample> read_supervised_examples(const config::Options& options,
                                                        const Tokenizer& tokenizer,
                                                        int64_t max_tokens);

/// Runs sft_steps steps of global_batch_size examples in seeded, shuffled order and prints a line
/// per 20 steps. Everything with a gradient is trained, mtp.* with its own loss.
/// @param groups who share each step's examples and the model.
/// @return mean loss of the last 20 steps.
double run_sft(const ExecContext& ctx, Weights* weights,
               const std::vector<SupervisedExample>& examples, const config::Options& options,
               const RankGroups& groups = {});

}  // namespace fathom
