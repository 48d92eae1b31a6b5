// What the endpoints know of the model that is served.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "fathom/model/config.h"
#include "fathom/tokenizer/chat.h"
#include "fathom/tokenizer/tokenizer.h"

namespace fathom {

struct ServedModel {
  ModelConfig config;
  std::shared_ptr<const Tokenizer> tokenizer;            // null: token ids only
  std::string path;                                      // of the checkpoint
  std::string name;                                      // as clients call it
  ThinkingMode thinking_mode = ThinkingMode::kThinking;  // of chats that do not say
  std::function<uint64_t()> next_seed;                   // for requests without a seed; any thread

  const Tokenizer* tokenizer_or_null() const { return tokenizer.get(); }
  /// Ids of a text. Errors: HttpError 400 naming `field`: no tokenizer, not UTF-8, too long for the
  /// model whatever its tokens are.
  std::vector<int32_t> encode(const std::string& text, const std::string& field) const;
  /// Errors: HttpError 400 naming `field` for a prompt that the model cannot read or continue.
  void check_prompt(const std::vector<int32_t>& ids, int64_t max_new_tokens,
                    const std::string& field) const;
};

}  // namespace fathom
