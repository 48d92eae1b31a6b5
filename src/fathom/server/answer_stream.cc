#include "fathom/server/answer_stream.h"

namespace fathom {

AnswerStream::AnswerStream(EngineService& service, HttpReply& reply,
                           std::vector<GenerateItem>& items, bool wants_tokens,
                           std::chrono::seconds timeout)
    : service_(service),
      reply_(reply),
      items_(items),
      event_(reply.executor()),
      deadline_(std::chrono::steady_clock::now() + timeout),
      timeout_(timeout) {
  std::vector<int64_t> samples_of_item;
  for (size_t i = 0; i < items.size(); ++i) {
    samples_of_item.push_back(static_cast<int64_t>(items[i].request.seeds.size()));
    item_of_sample_.resize(item_of_sample_.size() + items[i].request.seeds.size(), i);
    if (items[i].rid.empty()) items[i].rid = service.new_rid();
  }
  inbox_ = std::make_shared<AnswerInbox>(event_, samples_of_item);
  std::vector<Job> jobs;
  for (size_t i = 0; i < items.size(); ++i) {
    jobs.push_back({.rid = items[i].rid,
                    .item = static_cast<int64_t>(i),
                    .request = items[i].request,
                    .wants_tokens = wants_tokens,
                    .stream_interval = items[i].options.stream_interval,
                    .listener = inbox_});
  }
  service.submit(std::move(jobs));
  reply.on_client_gone([event = event_] { event.notify(); });
}

AnswerStream::~AnswerStream() {
  if (inbox_->is_finished()) return;
  for (const GenerateItem& item : items_) service_.abort(item.rid, "The client is gone");
}

asio::awaitable<std::vector<AnswerInbox::News>> AnswerStream::next() {
  for (;;) {
    if (reply_.client_gone()) throw ClientGone();
    std::vector<AnswerInbox::News> news = inbox_->take();
    if (!news.empty() || inbox_->is_finished()) co_return news;
    const bool in_time = co_await event_.wait_for(deadline_ - std::chrono::steady_clock::now());
    if (!in_time) {
      throw HttpError(504, str_cat("the answer took longer than ", timeout_.count(), " s"));
    }
  }
}

}  // namespace fathom
