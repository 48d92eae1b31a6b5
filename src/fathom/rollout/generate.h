// The `generate` command without its options: JSON lines of prompts in, JSON lines of answers out.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/model/config.h"
#include "fathom/rollout/engine.h"
#include "fathom/tokenizer/tokenizer.h"

namespace fathom {

struct GenerateOptions {
  SamplingParams sampling;
  int64_t num_samples = 1;
  uint64_t seed = 0;
  EngineOptions engine;  // append_token is set from the checkpoint's tokenizer
  /// Told how many of the answers are done, whenever that changes. May be null.
  std::function<void(int64_t num_done, int64_t num_answers)> on_progress;
};

/// One prompt per line of `input`; empty lines may only stand at the end.
///   {"token_ids": [...]}                   as they are
///   {"prompt": T}                          no BOS added, special tokens recognised
///   {"messages": [...], chat options ...}  rendered and encoded (tokenizer/chat.h; thinking mode)
/// @param tokenizer null where the checkpoint has none: then only token_ids.
/// @param origin what the text is, for messages.
/// @return prompt ids, at least one line, none empty.
/// Errors: UserError that names the line: not JSON, unknown or missing keys, an empty list or text,
/// an id outside the vocabulary, a prompt longer than the model.
std::vector<std::vector<int32_t>> read_generate_lines(std::string_view input,
                                                      const std::string& origin,
                                                      const ModelConfig& config,
                                                      const Tokenizer* tokenizer);

/// Samples num_samples answers of every prompt and writes one JSON line each, ordered by prompt,
/// then sample, as soon as everything before it is there:
///   {"index", "sample", "token_ids", "logprobs", "finish_reason", "text"}
/// `index` counts prompts from 0; `text` is there with a tokenizer only, and an id that it has no
/// token for reads as U+FFFD. Request seed of an answer: mix64(mix64(seed, index), sample).
/// Errors: UserError for bad sampling parameters, stop strings without a tokenizer, broken logits.
void generate(Engine& engine, const std::vector<std::vector<int32_t>>& prompts,
              const GenerateOptions& options, bool with_text,
              const std::function<void(std::string_view line)>& write);

/// How `text` is made of token ids. The tokenizer must outlive the result.
AppendToken append_token_of(const Tokenizer& tokenizer);

/// Reads the weights of a checkpoint directory. Handed in, so that this folder does not depend on
/// the formats of checkpoints.
using LoadWeights = std::function<Weights(const std::string& directory)>;

/// The whole command on files: reads and checks everything, then loads the weights, then works.
/// Errors: UserError; the output file is then as it was before.
void generate_file(const ExecContext& ctx, const std::string& checkpoint_directory,
                   const std::string& input_path, const std::string& output_path,
                   const GenerateOptions& options, const LoadWeights& load);

}  // namespace fathom
