// The text of an answer as its tokens arrive: how much of it may be shown already, and what it is
// in the end.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fathom/rollout/request.h"
#include "fathom/tokenizer/tokenizer.h"

namespace fathom {

struct TextOptions {
  bool skip_special_tokens = true;  // leave out tokens that tokenizer.json flags as special
  bool no_stop_trim = false;        // keep the token or the string that ended the answer
};

class AnswerText {
 public:
  /// @param tokenizer null: the text stays empty. Both must outlive this.
  AnswerText(const Tokenizer* tokenizer, const TextOptions& options,
             const std::vector<std::string>& stop)
      : tokenizer_(tokenizer), options_(options), stop_(stop) {}

  /// The next token of an answer that goes on behind it.
  void add(int32_t token_id);

  /// The text so far without what later tokens may still change: a character that is cut off, and
  /// the beginning of a stop string. Every result begins with the one before.
  std::string shown() const;

  /// The whole text, UTF-8. add() may have seen any number of the first tokens.
  std::string finish(const Completion& completion);

 private:
  const Tokenizer* tokenizer_;
  TextOptions options_;
  const std::vector<std::string>& stop_;
  std::string bytes_;
  size_t num_added_ = 0;
};

/// Text of one token, UTF-8; U+FFFD for an id that has none.
std::string token_text(const Tokenizer& tokenizer, int32_t id);

}  // namespace fathom
