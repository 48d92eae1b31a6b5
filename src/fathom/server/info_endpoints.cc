// What the server says of itself, and the tokenizer by HTTP.
#include "fathom/server/api.h"
#include "fathom/server/json_fields.h"

namespace fathom {

HttpResponse Api::health(const HttpRequest&) {
  const std::string failure = service_.failure();
  if (!failure.empty()) throw HttpError(503, "the engine has failed: " + failure);
  return text_response("");
}

HttpResponse Api::model_info(const HttpRequest&) {
  return json_response({{"model_path", model_.path},
                        {"tokenizer_path", model_.tokenizer ? Json(model_.path) : Json(nullptr)},
                        {"is_generation", true},
                        {"preferred_sampling_params", nullptr},
                        {"weight_version", service_.weight_version()},
                        {"has_image_understanding", false},
                        {"has_audio_understanding", false},
                        {"model_type", "deepseek_v4"},
                        {"architectures", Json::array({"DeepseekV4ForCausalLM"})}});
}

HttpResponse Api::server_info(const HttpRequest&) {
  const EngineService::Load load = service_.load();
  Json info = options_.server_args;
  info["version"] = options_.version;
  info["model_path"] = model_.path;
  info["served_model_name"] = model_.name;
  info["context_length"] = model_.config.max_position_embeddings;
  info["vocab_size"] = model_.config.vocab_size;
  info["weight_version"] = service_.weight_version();
  info["status"] = is_draining_ ? "shutting down" : service_.is_paused() ? "paused" : "ready";
  info["max_total_num_tokens"] = load.tokens.max_total;
  info["page_size"] = load.page_size;
  const EngineCounters& c = load.counters;
  info["internal_states"] = Json::array({{{"num_running_reqs", load.num_running},
                                          {"num_waiting_reqs", load.num_waiting},
                                          {"num_unfinished", load.num_unfinished},
                                          {"token_usage", load.tokens.share},
                                          {"state_used_bytes", load.used_bytes},
                                          {"state_budget_bytes", load.budget_bytes},
                                          {"num_cached_pages", c.num_cached_pages},
                                          {"num_hit_tokens", c.prefix_cache.num_hit_tokens},
                                          {"num_asked_tokens", c.prefix_cache.num_asked_tokens},
                                          {"num_preemptions", c.num_preemptions},
                                          {"spec_accept_rate", c.acceptance_rate()},
                                          {"resident_bytes", resident_bytes()}}});
  return json_response(info);
}

HttpResponse Api::weight_version(const HttpRequest&) {
  return json_response({{"weight_version", service_.weight_version()}});
}

HttpResponse Api::loads(const HttpRequest&) {
  const EngineService::Load load = service_.load();
  return json_response(Json::array({{{"dp_rank", 0},
                                     {"num_tokens", load.tokens.used},
                                     {"token_usage", load.tokens.share},
                                     {"num_reqs", load.num_running + load.num_waiting},
                                     {"num_running_reqs", load.num_running},
                                     {"num_waiting_reqs", load.num_waiting}}}));
}

/// /v1/models, and /v1/models/NAME.
HttpResponse Api::models(const HttpRequest& request) {
  const Json model{{"id", model_.name},   {"object", "model"},
                   {"created", 0},        {"owned_by", "fathom"},
                   {"root", model_.path}, {"max_model_len", model_.config.max_position_embeddings}};
  constexpr std::string_view kOne = "/v1/models/";
  if (!request.path.starts_with(kOne)) {
    return json_response({{"object", "list"}, {"data", Json::array({model})}});
  }
  const std::string_view given = std::string_view(request.path).substr(kOne.size());
  const std::string name = url_decode(given).value_or("");
  if (name != model_.name) {
    throw HttpError(
        404, str_cat("there is no model '", name.substr(0, 100), "', ", model_.name, " is served"));
  }
  return json_response(model);
}

HttpResponse Api::metrics(const HttpRequest&) {
  HttpResponse response = text_response(metrics_.page.text());
  response.content_type = std::string(MetricsPage::kContentType);
  return response;
}

HttpResponse Api::tokenize(const HttpRequest& request) {
  const Json body = parse_body(request.body);
  JsonFields fields(body, "");
  fields.ignore({"model"});
  const bool is_list = fields.find("prompt") != nullptr && fields.find("prompt")->is_array();
  if (fields.find("prompt") == nullptr) throw HttpError(400, "prompt is missing", "prompt");
  // No BOS is added here; the field says so to clients that would have it.
  if (fields.flag("add_special_tokens", false)) {
    throw HttpError(400, "add_special_tokens: nothing is ever added; write the BOS into the text",
                    "add_special_tokens");
  }
  Json all = Json::array();
  for (const std::string& text : fields.texts("prompt"))
    all.push_back(model_.encode(text, "prompt"));
  fields.refuse_unknown();
  Json counts = Json::array();
  for (const Json& ids : all) counts.push_back(ids.size());
  return json_response({{"tokens", is_list ? all : all.front()},
                        {"count", is_list ? counts : counts.front()},
                        {"max_model_len", model_.config.max_position_embeddings}});
}

HttpResponse Api::detokenize(const HttpRequest& request) {
  const Json body = parse_body(request.body);
  JsonFields fields(body, "");
  fields.ignore({"model"});
  const bool skip = fields.flag("skip_special_tokens", true);
  const Json* tokens = fields.find("tokens");
  if (tokens == nullptr) throw HttpError(400, "tokens is missing", "tokens");
  if (!model_.tokenizer) throw HttpError(400, "the checkpoint has no tokenizer");
  fields.refuse_unknown();
  const auto decode = [&](const Json& list) {
    const std::vector<std::string> no_stop;
    AnswerText text(&*model_.tokenizer, {.skip_special_tokens = skip, .no_stop_trim = true},
                    no_stop);
    Completion all;
    all.token_ids = token_ids_of(list, model_.config.vocab_size, "tokens");
    return text.finish(all);
  };
  const bool is_list = tokens->is_array() && !tokens->empty() && tokens->front().is_array();
  Json texts = Json::array();
  if (is_list) {
    for (const Json& list : *tokens) texts.push_back(decode(list));
  } else {
    texts.push_back(decode(*tokens));
  }
  return json_response({{"text", is_list ? texts : texts.front()}});
}

}  // namespace fathom
