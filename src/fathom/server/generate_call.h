// The body of POST /generate as checked records.
#pragma once

#include <string>
#include <vector>

#include "fathom/base/json.h"
#include "fathom/server/answer_text.h"
#include "fathom/server/served_model.h"

namespace fathom {

/// What of an answer is told.
struct AnswerOptions {
  TextOptions text;
  bool return_logprob = false;
  int64_t logprob_start = -1;  // first token of the prompt whose log-prob is told; -1: none
  bool return_text_in_logprobs = false;
  bool return_prompt_token_ids = false;
  bool return_routed_experts = false;
  int64_t routed_experts_start = 0;  // first position
  bool return_indexer_topk = false;
  int64_t stream_interval = 0;  // tokens from one event to the next; 0: the server's
};

/// One prompt of a call.
struct GenerateItem {
  std::string rid;  // empty: to be made up
  Request request;
  AnswerOptions options;
};

struct GenerateCall {
  std::vector<GenerateItem> items;
  bool is_list = false;  // the response is a list: several prompts, or several samples
  bool stream = false;
};

/// Errors: HttpError 400 that names the field.
GenerateCall parse_generate_call(const Json& body, const ServedModel& model);

}  // namespace fathom
