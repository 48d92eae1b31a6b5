#include "fathom/server/answer_inbox.h"

#include <algorithm>
#include <utility>

#include "fathom/server/http.h"

namespace fathom {
namespace {

template <typename T>
void append_from(const std::vector<T>& all, size_t first, std::vector<T>* out) {
  if (first < all.size()) {
    out->insert(out->end(), all.begin() + static_cast<std::ptrdiff_t>(first), all.end());
  }
}

bool has_news(const AnswerInbox::News& news) { return news.is_done || !news.token_ids.empty(); }

}  // namespace

AnswerInbox::AnswerInbox(Event event, const std::vector<int64_t>& samples_of_item)
    : event_(std::move(event)) {
  size_t total = 0;
  for (const int64_t n : samples_of_item) {
    first_sample_.push_back(total);
    total += static_cast<size_t>(n);
  }
  news_.resize(total);
  num_told_.resize(total);
  num_left_ = total;
}

size_t AnswerInbox::sample_index(int64_t item, int64_t sample) const {
  return first_sample_[static_cast<size_t>(item)] + static_cast<size_t>(sample);
}

void AnswerInbox::on_token(int64_t item, const Completion& so_far) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t i = sample_index(item, so_far.sample);
    News& news = news_[i];
    if (!has_news(news)) changed_.push_back(i);
    const size_t told = std::exchange(num_told_[i], so_far.token_ids.size());
    if (told == 0) {
      news.prompt_log_probs = so_far.prompt_log_probs;
      news.prompt_lists = so_far.prompt_lists;
    }
    append_from(so_far.token_ids, told, &news.token_ids);
    append_from(so_far.log_probs, told, &news.log_probs);
    append_from(so_far.lists.top, told, &news.lists.top);
    append_from(so_far.lists.listed, told, &news.lists.listed);
  }
  event_.notify();
}

void AnswerInbox::on_answer(int64_t item, Answer answer) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t i = sample_index(item, answer.completion.sample);
    News& news = news_[i];
    if (!has_news(news)) changed_.push_back(i);
    news.is_done = true;
    news.answer = std::move(answer);
  }
  event_.notify();
}

void AnswerInbox::on_failure(int64_t, int status, const std::string& message) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    failure_status_ = status;
    failure_ = message;
  }
  event_.notify();
}

std::vector<AnswerInbox::News> AnswerInbox::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (failure_status_ != 0) throw HttpError(failure_status_, failure_);
  std::sort(changed_.begin(), changed_.end());
  std::vector<News> out;
  for (const size_t i : changed_) {
    out.push_back(std::exchange(news_[i], News{}));
    out.back().sample = i;
    if (out.back().is_done) --num_left_;
  }
  changed_.clear();
  return out;
}

bool AnswerInbox::is_finished() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return num_left_ == 0;
}

}  // namespace fathom
