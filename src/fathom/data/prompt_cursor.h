// The order in which prompts are used: shuffled per epoch, and resumable.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fathom/base/json.h"

namespace fathom {

class PromptCursor {
 public:
  /// @param shuffle reorder every epoch by a Fisher-Yates seeded with seed + epoch, else file
  /// order.
  PromptCursor(int64_t num_prompts, bool shuffle, uint64_t seed);

  /// Indices of the next `count` prompts; wraps into the next epoch.
  std::vector<int64_t> take(int64_t count);

  int64_t epoch() const { return epoch_; }

  /// Position for checkpoints: {"epoch", "offset", "num_prompts"}.
  Json to_json() const;
  /// Errors: UserError when the record is damaged or was made for another number of prompts.
  void restore(const Json& json, const std::string& origin);

 private:
  void order_epoch();
  int64_t num_prompts_;
  bool shuffle_;
  uint64_t seed_;
  int64_t epoch_ = 0, offset_ = 0;
  std::vector<int64_t> order_;
};

}  // namespace fathom
