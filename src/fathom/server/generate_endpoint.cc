// POST /generate, and the health check that generates.
#include <algorithm>
#include <utility>

#include "fathom/server/api.h"
#include "fathom/server/generate_answer.h"
#include "fathom/server/json_fields.h"

namespace fathom {
namespace {

/// "RID" of a prompt's only sample, else "RID-2".
std::string sample_rid(const GenerateItem& item, int64_t sample) {
  return item.request.seeds.size() == 1 ? item.rid : str_cat(item.rid, "-", sample);
}

/// What a client has been told of one sample.
struct Told {
  Told(const ServedModel& model, const GenerateItem& item)
      : text(model.tokenizer_or_null(), item.options.text, item.request.sampling.stop) {}
  AnswerText text;
  Completion so_far;
  size_t shown_bytes = 0;
};

void append_news(const AnswerInbox::News& news, Told* told) {
  Completion& c = told->so_far;
  for (const int32_t id : news.token_ids) told->text.add(id);
  const auto append = [](const auto& from, auto* to) {
    to->insert(to->end(), from.begin(), from.end());
  };
  append(news.token_ids, &c.token_ids);
  append(news.log_probs, &c.log_probs);
  append(news.lists.top, &c.lists.top);
  append(news.lists.listed, &c.lists.listed);
}

/// Cuts from an event what earlier ones have told; counts stay those of the whole answer.
void keep_new(size_t num_tokens, size_t num_bytes, Json* event) {
  const auto cut = [&](Json* list) {
    const auto n = static_cast<std::ptrdiff_t>(std::min(num_tokens, list->size()));
    list->erase(list->begin(), list->begin() + n);
  };
  cut(&(*event)["output_ids"]);
  Json& meta = (*event)["meta_info"];
  for (const char* key :
       {"output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs"}) {
    if (meta.contains(key)) cut(&meta[key]);
  }
  (*event)["text"] = (*event)["text"].get_ref<const std::string&>().substr(num_bytes);
}

}  // namespace

asio::awaitable<void> Api::generate(const HttpRequest& request, HttpReply& reply) {
  const Json body = parse_body(request.body);
  GenerateCall call = parse_generate_call(body, model_);
  AnswerStream answers(service_, reply, call.items, call.stream, options_.request_timeout);
  std::vector<int64_t> sample_in_item;
  std::vector<Told> told;
  for (size_t i = 0; i < answers.num_samples(); ++i) {
    const bool is_first = i == 0 || answers.item_index(i) != answers.item_index(i - 1);
    sample_in_item.push_back(is_first ? 0 : sample_in_item.back() + 1);
    told.emplace_back(model_, answers.item_of(i));
    told.back().so_far.sample = sample_in_item.back();
  }

  if (!call.stream) {
    std::vector<Json> results(answers.num_samples());
    while (!answers.is_finished()) {
      const std::vector<AnswerInbox::News> all_news = co_await answers.next();
      for (const AnswerInbox::News& news : all_news) {
        const size_t i = news.sample;
        const GenerateItem& item = answers.item_of(i);
        const std::string text = told[i].text.finish(news.answer.completion);
        results[i] = generate_answer_json(item, sample_rid(item, sample_in_item[i]), news.answer,
                                          text, model_);
      }
    }
    HttpResponse response = json_response(call.is_list ? Json(std::move(results)) : results[0]);
    co_await reply.send(std::move(response));
    co_return;
  }

  HttpResponse head;
  head.content_type = kSseContentType;
  head.headers = {{"Cache-Control", "no-cache"}};
  co_await reply.start(std::move(head));
  std::string failure;
  try {
    while (!answers.is_finished()) {
      std::vector<AnswerInbox::News> all_news = co_await answers.next();
      std::string events;
      for (AnswerInbox::News& news : all_news) {
        const size_t i = news.sample;
        const GenerateItem& item = answers.item_of(i);
        const std::string rid = sample_rid(item, sample_in_item[i]);
        Told& t = told[i];
        const size_t told_tokens = t.so_far.token_ids.size();
        Json event;
        std::string text;
        if (news.is_done) {
          text = t.text.finish(news.answer.completion);
          event = generate_answer_json(item, rid, news.answer, text, model_);
        } else {
          append_news(news, &t);
          text = t.text.shown();
          event =
              generate_progress_json(item, rid, t.so_far, text, service_.weight_version(), model_);
        }
        if (options_.incremental_stream) keep_new(told_tokens, t.shown_bytes, &event);
        t.shown_bytes = text.size();
        if (call.is_list) event["index"] = i;
        events += sse_event(event);
      }
      co_await reply.write(std::move(events));
    }
  } catch (const HttpError& e) {
    failure = sse_event(error_json(e.status(), e.what(), e.field()));
  }
  failure += kSseDone;
  co_await reply.write(std::move(failure));
  co_await reply.end();
}

asio::awaitable<void> Api::health_generate(const HttpRequest&, HttpReply& reply) {
  // Any output that comes after this moment shows that the engine works, the probe's or another's.
  const auto begin = std::chrono::steady_clock::now();
  std::vector<GenerateItem> items(1);
  items[0].rid = "HEALTH_CHECK_" + service_.new_rid();
  items[0].request.prompt_ids = {static_cast<int32_t>(model_.config.bos_token_id)};
  items[0].request.sampling.max_new_tokens = 1;
  items[0].request.sampling.temperature = 0;
  items[0].request.seeds = {0};
  AnswerStream probe(service_, reply, items, false, options_.health_timeout);
  const Event tick(reply.executor());
  while (!probe.is_finished() && service_.last_output() <= begin) {
    if (reply.client_gone()) throw ClientGone();
    const std::string failure = service_.failure();
    if (!failure.empty()) throw HttpError(503, "the engine has failed: " + failure);
    if (std::chrono::steady_clock::now() - begin > options_.health_timeout) {
      throw HttpError(503, str_cat("the engine gave nothing in ", options_.health_timeout.count(),
                                   " s", service_.is_paused() ? "; it is paused" : ""));
    }
    co_await tick.wait_for(std::chrono::milliseconds(20));
  }
  HttpResponse response = text_response("");
  co_await reply.send(std::move(response));
}

}  // namespace fathom
