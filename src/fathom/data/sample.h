// One response to one prompt: the only record that crosses the borders data, rollout, reward,
// train.
//
// Example: prompt ids [0,5,9], response ids [7,1] -> tokens [0,5,9,7,1], response_length 2,
// rollout_log_probs has 2 entries, loss_mask (when given) 2 entries, replay rows cover positions
// 0..3 (the last token never feeds a prediction).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fathom/base/json.h"
#include "fathom/model/batch.h"

namespace fathom {

enum class SampleStatus { kPending, kCompleted, kTruncated, kAborted, kFailed };

struct Sample {
  int64_t group_index = 0;  // of the prompt, run-wide, from 0
  int64_t index = 0;        // of the sample, run-wide, from 0
  std::string prompt;       // rendered text
  std::string label;        // what the reward compares with; may be empty
  Json metadata = Json::object();

  std::vector<int32_t> tokens;  // prompt + response ids
  int64_t response_length = 0;
  std::string response;                  // text of the response
  std::vector<float> rollout_log_probs;  // [response_length]
  std::vector<uint8_t> loss_mask;        // [response_length], or empty: all ones
  int64_t weight_version = 0;
  ReplayRecord replay;  // empty unless recorded
  double reward = 0.0;
  bool remove_sample = false;  // keep it, but give it no loss
  SampleStatus status = SampleStatus::kPending;

  int64_t prompt_length() const { return static_cast<int64_t>(tokens.size()) - response_length; }
};

/// Samples of one prompt.
using SampleGroup = std::vector<Sample>;

/// For the rollout buffer of a checkpoint. Log-probs are kept exactly (as the bits of the float).
Json sample_to_json(const Sample& sample);
/// Errors: UserError that names the missing or wrong field.
Sample sample_from_json(const Json& json, const std::string& origin);

/// Checks the array lengths against each other. Errors: InternalError.
void check_sample(const Sample& sample);

}  // namespace fathom
