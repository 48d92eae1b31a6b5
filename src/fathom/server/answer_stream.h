// A request's prompts on their way through the engine, as its coroutine sees it.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "fathom/server/answer_inbox.h"
#include "fathom/server/generate_call.h"
#include "fathom/server/http_server.h"

namespace fathom {

class AnswerStream {
 public:
  /// Submits all items. `items` get the rids that they lack and must outlive this.
  /// Errors: those of EngineService::submit.
  AnswerStream(EngineService& service, HttpReply& reply, std::vector<GenerateItem>& items,
               bool wants_tokens, std::chrono::seconds timeout);
  /// Aborts what is unfinished.
  ~AnswerStream();
  AnswerStream(const AnswerStream&) = delete;
  AnswerStream& operator=(const AnswerStream&) = delete;

  size_t num_samples() const { return item_of_sample_.size(); }
  GenerateItem& item_of(size_t sample) { return items_[item_of_sample_[sample]]; }
  size_t item_index(size_t sample) const { return item_of_sample_[sample]; }

  /// Waits until there is news. Errors: ClientGone; HttpError when the engine has failed, or 504
  /// when the time is up.
  asio::awaitable<std::vector<AnswerInbox::News>> next();
  bool is_finished() const { return inbox_->is_finished(); }

 private:
  EngineService& service_;
  HttpReply& reply_;
  std::vector<GenerateItem>& items_;
  std::vector<size_t> item_of_sample_;
  Event event_;
  std::shared_ptr<AnswerInbox> inbox_;
  std::chrono::steady_clock::time_point deadline_;
  std::chrono::seconds timeout_;
};

}  // namespace fathom
