#include "fathom/data/prompt_cursor.h"

#include <numeric>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/base/hash.h"

namespace fathom {

PromptCursor::PromptCursor(int64_t num_prompts, bool shuffle, uint64_t seed)
    : num_prompts_(num_prompts), shuffle_(shuffle), seed_(seed) {
  FATHOM_CHECK(num_prompts >= 1, "prompt cursor: needs at least one prompt");
  order_epoch();
}

void PromptCursor::order_epoch() {
  order_.resize(static_cast<size_t>(num_prompts_));
  std::iota(order_.begin(), order_.end(), 0);
  if (!shuffle_) return;
  const uint64_t epoch_seed = seed_ + static_cast<uint64_t>(epoch_);
  for (size_t i = order_.size() - 1; i > 0; --i) {
    std::swap(order_[i], order_[mix64(epoch_seed, i) % (i + 1)]);
  }
}

std::vector<int64_t> PromptCursor::take(int64_t count) {
  std::vector<int64_t> taken;
  while (static_cast<int64_t>(taken.size()) < count) {
    if (offset_ == num_prompts_) {
      ++epoch_;
      offset_ = 0;
      order_epoch();
    }
    taken.push_back(order_[static_cast<size_t>(offset_++)]);
  }
  return taken;
}

Json PromptCursor::to_json() const {
  return Json{{"epoch", epoch_}, {"offset", offset_}, {"num_prompts", num_prompts_}};
}

void PromptCursor::restore(const Json& json, const std::string& origin) {
  try {
    FATHOM_CHECK(json.at("num_prompts").get<int64_t>() == num_prompts_, origin,
                 ": the data cursor was saved over ", json.at("num_prompts").dump(),
                 " prompts, the prompt file has ", num_prompts_,
                 "\n  fix: resume with the same prompt data");
    epoch_ = json.at("epoch").get<int64_t>();
    offset_ = json.at("offset").get<int64_t>();
  } catch (const Json::exception& e) {
    throw UserError(str_cat(origin, ": the data cursor is damaged: ", e.what()));
  }
  FATHOM_CHECK(epoch_ >= 0 && offset_ >= 0 && offset_ <= num_prompts_, origin,
               ": the data cursor points outside the data (offset ", offset_, ")");
  order_epoch();
}

}  // namespace fathom
