#include "fathom/server/openai_call.h"

#include <algorithm>
#include <limits>

#include "fathom/server/http.h"
#include "fathom/server/json_fields.h"
#include "fathom/server/sampling_fields.h"

namespace fathom {
namespace {

constexpr int64_t kAny = std::numeric_limits<int64_t>::max();

void check_model(JsonFields& fields, const ServedModel& model) {
  const std::string name = fields.text("model", model.name);
  if (name == model.name || name == model.path || name == "default") return;
  throw HttpError(
      404,
      str_cat("The model `", name.substr(0, 200), "` does not exist; this is `", model.name, "`"),
      "model");
}

/// What both endpoints take. Fills seeds and options of a first item; prompts are not read yet.
void read_common(JsonFields& fields, const ServedModel& model, OpenAiCall* call,
                 GenerateItem* item) {
  check_model(fields, model);
  call->stream = fields.flag("stream", false);
  if (const Json* options = fields.find("stream_options")) {
    JsonFields stream_fields(*options, "stream_options");
    call->include_usage = stream_fields.flag("include_usage", false);
    stream_fields.ignore({"include_obfuscation"});
    stream_fields.flag("continuous_usage_stats", false);
    stream_fields.refuse_unknown();
  }
  Request& r = item->request;
  r.sampling = read_sampling(fields, model.config.vocab_size, model.tokenizer != nullptr);
  item->options.text = read_text_options(fields);
  const int64_t n = fields.integer("n", 1, 1, kMaxSamples);
  const std::optional<uint64_t> seed = fields.seed("seed");
  r.seeds = sample_seeds(seed ? *seed : model.next_seed(), n);
  r.sampling.min_new_tokens = fields.integer("min_tokens", 0, 0, kAny);
  r.priority = fields.integer("priority", 0, -kMaxPriority, kMaxPriority);

  AnswerOptions& o = item->options;
  call->return_meta_info = fields.flag("return_meta_info", false);
  o.return_routed_experts = fields.flag("return_routed_experts", false);
  o.routed_experts_start = fields.integer("routed_experts_start_len", 0, 0, kAny);
  o.return_indexer_topk = fields.flag("return_indexer_topk", false);
  r.record_replay = o.return_routed_experts || o.return_indexer_topk;
  if (r.record_replay) call->return_meta_info = true;
  if (call->return_meta_info && call->stream) {
    throw HttpError(400, "return_meta_info does not go with stream", "return_meta_info");
  }
  item->rid = fields.text("rid", "");
  if (item->rid.size() > kMaxRidBytes) {
    fields.fail("rid", str_cat("a text of at most ", kMaxRidBytes, " bytes is expected"),
                *fields.find("rid"));
  }
  fields.refuse({"best_of", "suffix", "lora_path", "session_params", "regex", "ebnf",
                 "structural_tag", "json_schema", "stop_regex", "functions", "function_call",
                 "audio", "prediction", "web_search_options", "custom_logit_processor",
                 "return_hidden_states", "continue_final_message", "extra_key", "cache_salt"},
                "it is not built");
  fields.ignore({"user", "metadata", "store", "service_tier", "safety_identifier",
                 "prompt_cache_key", "routing_key", "custom_params", "stream_reasoning",
                 "parallel_tool_calls"});
}

/// The part of the model's context that a prompt leaves.
int64_t room_behind(const std::vector<int32_t>& prompt, const ServedModel& model) {
  return model.config.max_position_embeddings - static_cast<int64_t>(prompt.size());
}

void finish_item(JsonFields& fields, const ServedModel& model, const std::string& field,
                 GenerateItem* item) {
  Request& r = item->request;
  model.check_prompt(r.prompt_ids, r.sampling.max_new_tokens, field);
  if (r.sampling.min_new_tokens > r.sampling.max_new_tokens) {
    fields.fail("min_tokens", str_cat("at most max_tokens, ", r.sampling.max_new_tokens),
                Json(r.sampling.min_new_tokens));
  }
  const int64_t last = static_cast<int64_t>(r.prompt_ids.size()) - 1;
  if (item->options.routed_experts_start > last) {
    fields.fail("routed_experts_start_len", str_cat("at most ", last),
                Json(item->options.routed_experts_start));
  }
}

/// Content as a list of parts becomes their text, as other servers do with templates of plain text.
void flatten_content(Json* messages) {
  if (!messages->is_array() || messages->empty()) {
    throw HttpError(400,
                    str_cat("messages: a list of at least one message is expected, got ",
                            describe_json(*messages)),
                    "messages");
  }
  for (size_t i = 0; i < messages->size(); ++i) {
    Json& message = (*messages)[i];
    if (!message.is_object() || !message.contains("content")) continue;
    const bool is_tool = message.contains("role") && message["role"] == "tool";
    Json& content = message["content"];
    if (!content.is_array() || is_tool) continue;  // the encoder has a rule for those of tools
    std::string text;
    for (size_t p = 0; p < content.size(); ++p) {
      const std::string where = str_cat("messages[", i, "].content[", p, "]");
      JsonFields part(content[p], where);
      if (part.text("type", "") != "text") {
        throw HttpError(400, where + ": the model reads parts of type text alone", where);
      }
      if (p > 0) text += " ";
      text += part.text("text", "");
    }
    content = text;
  }
}

ChatOptions read_chat_options(JsonFields& fields, const ServedModel& model) {
  ChatOptions options;
  options.thinking_mode = model.thinking_mode;
  if (const Json* effort = fields.find("reasoning_effort")) {
    // Below max there is one way of thinking; none is not to think.
    const std::string text = effort->is_string() ? effort->get<std::string>() : "";
    static constexpr std::string_view kPlain[] = {"minimal", "low", "medium", "high"};
    if (text == "max") {
      options.reasoning_effort = "max";
    } else if (text == "none") {
      options.thinking_mode = ThinkingMode::kChat;
    } else if (std::find(std::begin(kPlain), std::end(kPlain), text) == std::end(kPlain)) {
      fields.fail("reasoning_effort", "none, minimal, low, medium, high or max is expected",
                  *effort);
    }
  }
  if (const Json* thinking = fields.find("thinking")) {
    JsonFields sub(*thinking, "thinking");
    const std::string type = sub.text("type", "enabled");
    sub.refuse_unknown();
    if (type != "enabled" && type != "disabled") {
      sub.fail("type", "enabled or disabled is expected", Json(type));
    }
    options.thinking_mode = type == "enabled" ? ThinkingMode::kThinking : ThinkingMode::kChat;
  }
  if (const Json* kwargs = fields.find("chat_template_kwargs")) {
    try {
      options = parse_chat_options(*kwargs, "chat_template_kwargs", options);
    } catch (const UserError& e) {
      throw HttpError(400, e.what(), "chat_template_kwargs");
    }
  }
  const Json* choice = fields.find("tool_choice");
  if (choice != nullptr && *choice != "auto" && *choice != "none") {
    fields.fail("tool_choice", "auto or none is expected; the model cannot be made to call a tool",
                *choice);
  }
  const Json* tools = fields.find("tools");
  if (tools != nullptr && !tools->empty() && (choice == nullptr || *choice != "none")) {
    options.tools = *tools;
  }
  return options;
}

void read_response_format(JsonFields& fields) {
  const Json* format = fields.find("response_format");
  if (format == nullptr) return;
  JsonFields sub(*format, "response_format");
  const std::string type = sub.text("type", "text");
  if (type != "text")
    sub.fail("type", "text is expected; constrained decoding is not built", Json(type));
}

}  // namespace

OpenAiCall parse_completion_call(const Json& body, const ServedModel& model) {
  JsonFields fields(body, "");
  OpenAiCall call;
  GenerateItem first;
  read_common(fields, model, &call, &first);
  Request& r = first.request;
  r.sampling.max_new_tokens = fields.integer("max_tokens", 16, 0, kAny);
  call.echo = fields.flag("echo", false);
  if (fields.find("logprobs") != nullptr) {
    call.logprobs = true;
    first.options.return_logprob = true;
    r.lists.num_top = fields.integer("logprobs", 0, 0, 20);
    if (call.echo) r.prompt_log_probs_from = 0;
  }
  const Json* prompt = fields.find("prompt");
  if (prompt == nullptr) throw HttpError(400, "prompt is missing", "prompt");
  fields.refuse({"response_format"}, "constrained decoding is not built");
  fields.refuse_unknown();

  std::vector<std::vector<int32_t>> prompts;
  const bool is_list = prompt->is_array() && !prompt->empty();
  if (is_list && prompt->front().is_array()) {
    for (const Json& ids : *prompt) {
      prompts.push_back(token_ids_of(ids, model.config.vocab_size, "prompt"));
    }
  } else if (is_list && prompt->front().is_number()) {
    prompts.push_back(fields.token_ids("prompt", model.config.vocab_size));
  } else {
    for (const std::string& text : fields.texts("prompt")) {
      prompts.push_back(model.encode(text, "prompt"));
    }
  }
  if (prompts.empty()) throw HttpError(400, "prompt: the list is empty", "prompt");
  if ((call.echo || call.logprobs) && !model.tokenizer) {
    throw HttpError(400, "echo and logprobs need a tokenizer, and the checkpoint has none", "echo");
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    GenerateItem item = first;
    item.request.prompt_ids = std::move(prompts[i]);
    if (prompts.size() > 1 && !item.rid.empty()) item.rid += str_cat("_", i);
    finish_item(fields, model, "prompt", &item);
    if (call.echo) {
      AnswerText text(&*model.tokenizer, item.options.text, item.request.sampling.stop);
      for (const int32_t id : item.request.prompt_ids) text.add(id);
      Completion nothing;
      call.echoed.push_back(text.finish(nothing));
    }
    call.items.push_back(std::move(item));
  }
  return call;
}

OpenAiCall parse_chat_call(const Json& body, const ServedModel& model) {
  JsonFields fields(body, "");
  OpenAiCall call;
  GenerateItem item;
  read_common(fields, model, &call, &item);
  Request& r = item.request;
  call.logprobs = fields.flag("logprobs", false);
  const int64_t num_top = fields.integer("top_logprobs", 0, 0, 20);
  if (num_top > 0 && !call.logprobs) {
    throw HttpError(400, "top_logprobs needs logprobs", "top_logprobs");
  }
  r.lists.num_top = num_top;
  item.options.return_logprob = call.logprobs || call.return_meta_info;
  if (!fields.flag("separate_reasoning", true)) {
    throw HttpError(400, "separate_reasoning: reasoning is always told apart from content",
                    "separate_reasoning");
  }
  read_response_format(fields);
  const ChatOptions options = read_chat_options(fields, model);
  call.thinking_mode = options.thinking_mode;
  const Json* messages = fields.find("messages");
  const Json* input_ids = fields.find("input_ids");
  const Json* max_tokens = fields.find("max_completion_tokens");
  const char* limit = max_tokens != nullptr ? "max_completion_tokens" : "max_tokens";
  fields.ignore({"max_tokens"});

  if (!model.tokenizer) {
    throw HttpError(400, "a chat needs a tokenizer, and the checkpoint has none");
  }
  if (input_ids != nullptr) {
    r.prompt_ids = fields.token_ids("input_ids", model.config.vocab_size);
  } else {
    if (messages == nullptr) throw HttpError(400, "messages is missing", "messages");
    Json list = *messages;
    flatten_content(&list);
    std::string text;
    try {
      text = encode_messages(list, options);
    } catch (const UserError& e) {
      const bool is_of_tools = std::string_view(e.what()).starts_with("tools");
      throw HttpError(400, e.what(), is_of_tools ? "tools" : "messages");
    }
    r.prompt_ids = model.encode(text, "messages");
  }
  r.sampling.max_new_tokens =
      fields.integer(limit, std::max<int64_t>(1, room_behind(r.prompt_ids, model)), 0, kAny);
  fields.refuse_unknown();
  finish_item(fields, model, input_ids != nullptr ? "input_ids" : "messages", &item);
  call.items.push_back(std::move(item));
  return call;
}

}  // namespace fathom
