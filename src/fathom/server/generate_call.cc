#include "fathom/server/generate_call.h"

#include <limits>

#include "fathom/server/http.h"
#include "fathom/server/json_fields.h"
#include "fathom/server/sampling_fields.h"

namespace fathom {
namespace {

constexpr int64_t kAny = std::numeric_limits<int64_t>::max();

/// Prompts of the call, and whether they came as a list.
struct Prompts {
  std::vector<std::vector<int32_t>> ids;
  bool is_list = false;
  std::string field;
};

Prompts read_prompts(JsonFields& fields, const ServedModel& model) {
  Prompts prompts;
  const Json* text = fields.find("text");
  const Json* ids = fields.find("input_ids");
  if ((text != nullptr) == (ids != nullptr)) {
    throw HttpError(400, "exactly one of text and input_ids is expected", "text");
  }
  if (text != nullptr) {
    prompts.field = "text";
    prompts.is_list = text->is_array();
    for (const std::string& one : fields.texts("text")) {
      prompts.ids.push_back(model.encode(one, "text"));
    }
  } else {
    prompts.field = "input_ids";
    prompts.is_list = ids->is_array() && !ids->empty() && ids->front().is_array();
    if (prompts.is_list) {
      for (const Json& one : *ids) {
        prompts.ids.push_back(token_ids_of(one, model.config.vocab_size, "input_ids"));
      }
    } else {
      prompts.ids.push_back(fields.token_ids("input_ids", model.config.vocab_size));
    }
  }
  if (prompts.ids.empty())
    throw HttpError(400, prompts.field + ": the list is empty", prompts.field);
  return prompts;
}

/// A field that is one value for all prompts, or a list with one for each, as an object per prompt.
void take_value(JsonFields& fields, const char* key, bool is_list_value, size_t num_prompts,
                std::vector<Json>* per_prompt) {
  const Json* value = fields.find(key);
  if (value == nullptr) return;
  // A value that is itself a list comes per prompt as a list of lists.
  const bool is_per_prompt =
      value->is_array() && (!is_list_value || (!value->empty() && (value->front().is_array() ||
                                                                   value->front().is_null())));
  if (is_per_prompt && value->size() != num_prompts) {
    throw HttpError(
        400, str_cat(key, ": ", value->size(), " entries for ", num_prompts, " prompts"), key);
  }
  for (size_t i = 0; i < num_prompts; ++i) {
    (*per_prompt)[i][key] = is_per_prompt ? (*value)[i] : *value;
  }
}

/// @return how many samples are wanted.
int64_t read_sampling_params(const Json& object, const ServedModel& model, GenerateItem* item) {
  JsonFields fields(object, "sampling_params");
  const int64_t vocab = model.config.vocab_size;
  SamplingParams p = read_sampling(fields, vocab, model.tokenizer != nullptr);
  p.max_new_tokens = fields.integer("max_new_tokens", 128, 0, kAny);
  p.min_new_tokens = fields.integer("min_new_tokens", 0, 0, p.max_new_tokens);
  item->options.text = read_text_options(fields);
  const int64_t n = fields.integer("n", 1, 1, kMaxSamples);
  const std::optional<uint64_t> seed = fields.seed("sampling_seed");
  item->request.seeds = sample_seeds(seed ? *seed : model.next_seed(), n);
  fields.refuse({"json_schema", "regex", "ebnf", "structural_tag"},
                "constrained decoding is not built");
  fields.refuse({"stop_regex"}, "regular expressions as stops are not built; stop takes texts");
  item->options.stream_interval = fields.integer("stream_interval", 0, 1, kAny);
  fields.ignore({"custom_params"});
  fields.refuse_unknown();
  item->request.sampling = std::move(p);
  return n;
}

void read_item(const Json& object, const ServedModel& model, GenerateItem* item) {
  JsonFields fields(object, "");
  AnswerOptions& o = item->options;
  Request& r = item->request;
  o.return_logprob = fields.flag("return_logprob", false);
  const int64_t length = static_cast<int64_t>(r.prompt_ids.size());
  const int64_t from = fields.integer("logprob_start_len", -1, -1, length - 1);
  const int64_t num_top = fields.integer("top_logprobs_num", 0, 0, kMaxTopLogProbs);
  std::vector<int32_t> ids = fields.token_ids("token_ids_logprob", model.config.vocab_size);
  if (o.return_logprob) {
    o.logprob_start = from;
    r.prompt_log_probs_from = from > 0 ? from - 1 : from;  // the engine's are of what is behind it
    r.lists = {.num_top = num_top, .token_ids = std::move(ids)};
  }
  o.return_text_in_logprobs = fields.flag("return_text_in_logprobs", false);
  if (o.return_text_in_logprobs && !model.tokenizer) {
    throw HttpError(400, "return_text_in_logprobs: the checkpoint has no tokenizer",
                    "return_text_in_logprobs");
  }
  o.return_prompt_token_ids = fields.flag("return_prompt_token_ids", false);
  o.return_routed_experts = fields.flag("return_routed_experts", false);
  o.routed_experts_start = fields.integer("routed_experts_start_len", 0, 0, length - 1);
  o.return_indexer_topk = fields.flag("return_indexer_topk", false);
  r.record_replay = o.return_routed_experts || o.return_indexer_topk;
  item->rid = fields.text("rid", "");
  if (item->rid.size() > kMaxRidBytes) {
    fields.fail("rid", str_cat("a text of at most ", kMaxRidBytes, " bytes is expected"),
                *fields.find("rid"));
  }
}

}  // namespace

GenerateCall parse_generate_call(const Json& body, const ServedModel& model) {
  JsonFields fields(body, "");
  GenerateCall call;
  call.stream = fields.flag("stream", false);
  fields.refuse({"input_embeds"}, "embeddings as input are not built");
  Prompts prompts = read_prompts(fields, model);
  const size_t num_prompts = prompts.ids.size();
  call.is_list = prompts.is_list;

  std::vector<Json> per_prompt(num_prompts, Json::object());
  for (const char* key :
       {"sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num",
        "return_text_in_logprobs", "return_prompt_token_ids", "return_routed_experts",
        "routed_experts_start_len", "return_indexer_topk"}) {
    take_value(fields, key, false, num_prompts, &per_prompt);
  }
  take_value(fields, "token_ids_logprob", true, num_prompts, &per_prompt);
  if (const Json* rid = fields.find("rid"); rid != nullptr && rid->is_string() && prompts.is_list) {
    for (size_t i = 0; i < num_prompts; ++i) {
      per_prompt[i]["rid"] = str_cat(rid->get<std::string>(), "_", i);
    }
  } else {
    take_value(fields, "rid", false, num_prompts, &per_prompt);
  }

  fields.refuse({"image_data", "audio_data", "video_data", "modalities"},
                "the model reads text alone");
  fields.refuse({"lora_path", "lora_id"}, "LoRA is not built");
  fields.refuse({"session_params", "session_id"}, "sessions are not built");
  fields.refuse({"custom_logit_processor"}, "this program runs no Python");
  fields.refuse({"bootstrap_host", "bootstrap_port", "bootstrap_room"},
                "prefill and decode on different servers are not built");
  fields.refuse({"return_hidden_states", "return_entropy", "return_sampling_mask"},
                "it is not built");
  fields.refuse({"extra_key", "cache_salt"}, "separate caches are not built");
  fields.refuse({"max_thinking_tokens"}, "a limit on thinking is not built");
  for (const char* key : {"routed_dp_rank", "data_parallel_rank"}) fields.integer(key, 0, -1, 0);
  const int64_t priority = fields.integer("priority", 0, -kMaxPriority, kMaxPriority);
  // They change no answer here; routing_key is the router's.
  fields.ignore({"routing_key", "log_metrics", "no_logs", "background", "conversation_id",
                 "custom_labels", "require_reasoning"});
  fields.refuse_unknown();

  for (size_t i = 0; i < num_prompts; ++i) {
    GenerateItem& item = call.items.emplace_back();
    item.request.prompt_ids = std::move(prompts.ids[i]);
    item.request.priority = priority;
    const Json& values = per_prompt[i];
    const Json* sampling =
        values.contains("sampling_params") ? &values["sampling_params"] : nullptr;
    const Json nothing = Json::object();
    const bool is_absent = sampling == nullptr || sampling->is_null();
    const int64_t n = read_sampling_params(is_absent ? nothing : *sampling, model, &item);
    call.is_list = call.is_list || n > 1;
    model.check_prompt(item.request.prompt_ids, item.request.sampling.max_new_tokens,
                       prompts.field);
    read_item(values, model, &item);
  }
  return call;
}

}  // namespace fathom
