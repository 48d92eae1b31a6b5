// Where the engine's thread leaves what a request waits for, and its coroutine picks it up.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "fathom/server/engine_service.h"
#include "fathom/server/event.h"

namespace fathom {

class AnswerInbox : public JobListener {
 public:
  /// @param samples_of_item  how many samples item i has. Samples are numbered through all items.
  AnswerInbox(Event event, const std::vector<int64_t>& samples_of_item);

  void on_token(int64_t item, const Completion& so_far) override;
  void on_answer(int64_t item, Answer answer) override;
  void on_failure(int64_t item, int status, const std::string& message) override;

  /// What came for one sample since the last take().
  struct News {
    size_t sample = 0;  // counted through all items
    std::vector<int32_t> token_ids;
    std::vector<float> log_probs;
    ListedLogProbs lists;
    std::vector<float> prompt_log_probs;  // with the first token, where asked for
    ListedLogProbs prompt_lists;
    bool is_done = false;
    Answer answer;  // once done; its completion holds all tokens
  };
  /// Samples with news, by number. Errors: HttpError when a job has failed.
  std::vector<News> take();
  /// True when every sample is done and taken.
  bool is_finished() const;

 private:
  size_t sample_index(int64_t item, int64_t sample) const;

  Event event_;
  std::vector<size_t> first_sample_;  // of each item
  mutable std::mutex mutex_;
  std::vector<News> news_;        // by sample
  std::vector<size_t> num_told_;  // tokens, by sample
  std::vector<size_t> changed_;   // samples with news, each once
  size_t num_left_ = 0;
  int failure_status_ = 0;
  std::string failure_;
};

}  // namespace fathom
