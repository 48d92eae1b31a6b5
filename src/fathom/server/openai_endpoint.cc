// POST /v1/completions and /v1/chat/completions.
#include <ctime>
#include <utility>

#include "fathom/server/api.h"
#include "fathom/server/generate_answer.h"
#include "fathom/server/json_fields.h"
#include "fathom/server/openai_answer.h"

namespace fathom {
namespace {

/// One choice on its way.
struct Choice {
  Choice(const ServedModel& model, const GenerateItem& item, ThinkingMode mode)
      : text(model.tokenizer_or_null(), item.options.text, item.request.sampling.stop),
        parser(mode) {}
  AnswerText text;
  ChatParser parser;
  Completion so_far;
  size_t shown_bytes = 0;   // of the text
  size_t told_tokens = 0;   // with log-probs
  int64_t text_offset = 0;  // characters before the next token
  bool is_echoed = false;   // the prompt's log-probs are told
};

void append_news(const AnswerInbox::News& news, Choice* choice) {
  Completion& c = choice->so_far;
  if (!news.prompt_log_probs.empty()) {
    c.prompt_log_probs = news.prompt_log_probs;
    c.prompt_lists = news.prompt_lists;
  }
  for (const int32_t id : news.token_ids) choice->text.add(id);
  c.token_ids.insert(c.token_ids.end(), news.token_ids.begin(), news.token_ids.end());
  c.log_probs.insert(c.log_probs.end(), news.log_probs.begin(), news.log_probs.end());
  c.lists.top.insert(c.lists.top.end(), news.lists.top.begin(), news.lists.top.end());
}

/// What both endpoints share: one object of JSON for a piece of a choice or for a whole one.
class Writer {
 public:
  Writer(const OpenAiCall& call, const ServedModel& model, AnswerStream& answers, bool is_chat)
      : call_(call), model_(model), answers_(answers), is_chat_(is_chat) {
    id_ = str_cat(is_chat ? "chatcmpl-" : "cmpl-", call.items[0].rid);
    created_ = static_cast<int64_t>(std::time(nullptr));
    for (size_t i = 0; i < answers.num_samples(); ++i) {
      choices_.emplace_back(model, answers.item_of(i), call.thinking_mode);
    }
    for (const GenerateItem& item : call.items) {
      usage_.prompt_tokens += static_cast<int64_t>(item.request.prompt_ids.size());
    }
  }

  Json whole_choice(const AnswerInbox::News& news) {
    Choice& choice = choices_[news.sample];
    const GenerateItem& item = answers_.item_of(news.sample);
    const Completion& c = news.answer.completion;
    count(news.sample, c);
    const std::string text = choice.text.finish(c);
    Json out{{"index", news.sample}};
    bool has_calls = false;
    if (is_chat_) {
      const ChatParser::Delta all = choice.parser.finish(text);
      has_calls = !choice.parser.tool_calls().empty();
      Json message{{"role", "assistant"}};
      message["content"] = has_calls && all.content.empty() ? Json(nullptr) : Json(all.content);
      message["reasoning_content"] = all.reasoning.empty() ? Json(nullptr) : Json(all.reasoning);
      message["tool_calls"] =
          has_calls ? tool_calls_json(choice.parser.tool_calls(), call_id(news.sample), false)
                    : Json(nullptr);
      out["message"] = std::move(message);
    } else {
      out["text"] = echo_of(news.sample) + text;
    }
    out["logprobs"] = call_.logprobs ? logprobs(choice, c, item) : Json(nullptr);
    out["finish_reason"] = openai_finish_reason(c, has_calls);
    out["matched_stop"] = matched_stop(news.answer);
    if (call_.return_meta_info) {
      out["meta_info"] =
          generate_answer_json(item, item.rid, news.answer, text, model_)["meta_info"];
    }
    return out;
  }

  /// Events for what is new; none when nothing can be shown yet.
  std::string events(const AnswerInbox::News& news) {
    Choice& choice = choices_[news.sample];
    const GenerateItem& item = answers_.item_of(news.sample);
    std::string text;
    if (news.is_done) {
      choice.so_far = news.answer.completion;
      count(news.sample, choice.so_far);
      text = choice.text.finish(choice.so_far);
    } else {
      append_news(news, &choice);
      text = choice.text.shown();
    }
    std::string out;
    const bool is_first = !choice.is_echoed;
    const Json logprobs_now =
        call_.logprobs ? logprobs(choice, choice.so_far, item) : Json(nullptr);
    if (!is_chat_) {
      const std::string echo = is_first && echoes_with_log_probs() ? echo_of(news.sample) : "";
      Json piece{{"index", news.sample}, {"text", echo + text.substr(choice.shown_bytes)}};
      choice.shown_bytes = text.size();
      piece["logprobs"] = logprobs_now;
      piece["finish_reason"] =
          news.is_done ? Json(openai_finish_reason(choice.so_far, false)) : Json(nullptr);
      if (news.is_done) piece["matched_stop"] = matched_stop(news.answer);
      const bool has_text = !piece["text"].get_ref<const std::string&>().empty();
      if (has_text || news.is_done || call_.logprobs) out += event(std::move(piece));
      return out;
    }
    const ChatParser::Delta delta =
        news.is_done ? choice.parser.finish(text) : choice.parser.feed(text);
    // A piece with the end of the thinking in it is told as two, in their order.
    const bool is_two = !delta.reasoning.empty() && !delta.content.empty();
    if (is_two) {
      out += chat_event(news.sample, {{"reasoning_content", delta.reasoning}}, nullptr, nullptr,
                        nullptr);
    }
    if (!delta.empty() || call_.logprobs) {
      Json fields = Json::object();
      if (!delta.reasoning.empty() && !is_two) fields["reasoning_content"] = delta.reasoning;
      if (!delta.content.empty()) fields["content"] = delta.content;
      out += chat_event(news.sample, std::move(fields), logprobs_now, nullptr, nullptr);
    }
    if (!news.is_done) return out;
    const std::vector<ToolCall>& calls = choice.parser.tool_calls();
    if (!calls.empty()) {
      Json fields{{"tool_calls", tool_calls_json(calls, call_id(news.sample), true)}};
      out += chat_event(news.sample, std::move(fields), nullptr, nullptr, nullptr);
    }
    out +=
        chat_event(news.sample, Json::object(), nullptr,
                   openai_finish_reason(choice.so_far, !calls.empty()), matched_stop(news.answer));
    return out;
  }

  /// Sent before anything else: whose turn it is, or the echoed prompts.
  std::string first_events() {
    std::string out;
    for (size_t i = 0; i < choices_.size(); ++i) {
      if (is_chat_) {
        Json fields{{"role", "assistant"}, {"content", ""}};
        out += chat_event(i, std::move(fields), nullptr, nullptr, nullptr);
      } else if (call_.echo && !echoes_with_log_probs()) {
        out += event({{"index", i},
                      {"text", echo_of(i)},
                      {"logprobs", nullptr},
                      {"finish_reason", nullptr}});
      }
    }
    return out;
  }

  std::string usage_event() const {
    Json json = envelope(true);
    json["choices"] = Json::array();
    json["usage"] = usage_.json();
    return sse_event(json);
  }

  Json response(std::vector<Json> choices) const {
    Json json = envelope(false);
    json["choices"] = std::move(choices);
    json["usage"] = usage_.json();
    return json;
  }

 private:
  Json envelope(bool is_chunk) const {
    const char* object = !is_chat_  ? "text_completion"
                         : is_chunk ? "chat.completion.chunk"
                                    : "chat.completion";
    return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_.name}};
  }
  std::string event(Json choice) const {
    Json json = envelope(true);
    json["choices"] = Json::array();
    json["choices"].push_back(std::move(choice));
    if (call_.include_usage) json["usage"] = nullptr;
    return sse_event(json);
  }
  std::string chat_event(size_t index, Json delta, const Json& logprobs, const Json& finish_reason,
                         const Json& matched) const {
    Json choice{{"index", index}};
    choice["delta"] = std::move(delta);
    choice["logprobs"] = logprobs;
    choice["finish_reason"] = finish_reason;
    if (!finish_reason.is_null()) choice["matched_stop"] = matched;
    return event(std::move(choice));
  }
  Json logprobs(Choice& choice, const Completion& c, const GenerateItem& item) const {
    const size_t first = std::exchange(choice.told_tokens, c.token_ids.size());
    if (is_chat_) return chat_logprobs_json(c, first, *model_.tokenizer);
    const bool echoed = call_.echo && !std::exchange(choice.is_echoed, true);
    return completion_logprobs_json(c, first, item, echoed, *model_.tokenizer, &choice.text_offset);
  }
  /// The prompt's log-probs are known with the first token, so its text waits for them.
  bool echoes_with_log_probs() const { return call_.echo && call_.logprobs; }
  static Json matched_stop(const Answer& answer) {
    const Json reason = finish_reason_json(answer);
    return reason.contains("matched") ? reason["matched"] : Json(nullptr);
  }
  std::string echo_of(size_t sample) const {
    return call_.echo ? call_.echoed[answers_.item_index(sample)] : std::string();
  }
  std::string call_id(size_t sample) const { return str_cat(call_.items[0].rid, "_", sample); }
  void count(size_t sample, const Completion& c) {
    // As prompt_tokens, once for all samples of a prompt.
    const bool is_first =
        sample == 0 || answers_.item_index(sample) != answers_.item_index(sample - 1);
    if (is_first) usage_.cached_tokens += c.num_cached_tokens;
    usage_.completion_tokens += static_cast<int64_t>(c.token_ids.size());
    if (is_chat_) {
      usage_.reasoning_tokens +=
          num_reasoning_tokens(c.token_ids, call_.thinking_mode, *model_.tokenizer);
    }
  }

  const OpenAiCall& call_;
  const ServedModel& model_;
  AnswerStream& answers_;
  bool is_chat_;
  std::string id_;
  int64_t created_ = 0;
  std::vector<Choice> choices_;
  Usage usage_;
};

asio::awaitable<void> answer(OpenAiCall& call, bool is_chat, const ServedModel& model,
                             EngineService& service, std::chrono::seconds timeout,
                             HttpReply& reply) {
  AnswerStream answers(service, reply, call.items, call.stream, timeout);
  Writer writer(call, model, answers, is_chat);
  if (!call.stream) {
    std::vector<Json> choices(answers.num_samples());
    while (!answers.is_finished()) {
      const std::vector<AnswerInbox::News> all_news = co_await answers.next();
      for (const AnswerInbox::News& news : all_news) {
        choices[news.sample] = writer.whole_choice(news);
      }
    }
    HttpResponse response = json_response(writer.response(std::move(choices)));
    co_await reply.send(std::move(response));
    co_return;
  }
  HttpResponse head;
  head.content_type = kSseContentType;
  head.headers = {{"Cache-Control", "no-cache"}};
  co_await reply.start(std::move(head));
  std::string last;
  try {
    std::string events = writer.first_events();
    co_await reply.write(std::move(events));
    while (!answers.is_finished()) {
      const std::vector<AnswerInbox::News> all_news = co_await answers.next();
      std::string more;
      for (const AnswerInbox::News& news : all_news) more += writer.events(news);
      co_await reply.write(std::move(more));
    }
    if (call.include_usage) last = writer.usage_event();
  } catch (const HttpError& e) {
    last = sse_event(error_json(e.status(), e.what(), e.field()));
  }
  last += kSseDone;
  co_await reply.write(std::move(last));
  co_await reply.end();
}

}  // namespace

asio::awaitable<void> Api::completions(const HttpRequest& request, HttpReply& reply) {
  const Json body = parse_body(request.body);
  OpenAiCall call = parse_completion_call(body, model_);
  co_await answer(call, false, model_, service_, options_.request_timeout, reply);
}

asio::awaitable<void> Api::chat_completions(const HttpRequest& request, HttpReply& reply) {
  const Json body = parse_body(request.body);
  OpenAiCall call = parse_chat_call(body, model_);
  co_await answer(call, true, model_, service_, options_.request_timeout, reply);
}

}  // namespace fathom
