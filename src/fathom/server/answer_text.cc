#include "fathom/server/answer_text.h"

#include <algorithm>
#include <string_view>

#include "fathom/tokenizer/utf8.h"

namespace fathom {
namespace {

std::string_view bytes_of(const Tokenizer& tokenizer, int32_t id) {
  return tokenizer.has_id(id) ? tokenizer.token_bytes(id) : std::string_view("\xEF\xBF\xBD");
}

/// Bytes at the end that begin a stop string without completing it.
size_t stop_prefix(std::string_view bytes, const std::vector<std::string>& stop) {
  size_t longest = 0;
  for (const std::string& s : stop) {
    for (size_t n = std::min(s.size() - 1, bytes.size()); n > longest; --n) {
      if (bytes.ends_with(std::string_view(s).substr(0, n))) longest = n;
    }
  }
  return longest;
}

/// Bytes at the end that may be the beginning of a character.
size_t open_character(std::string_view bytes) {
  for (size_t back = 1; back <= std::min<size_t>(3, bytes.size()); ++back) {
    const auto byte = static_cast<unsigned char>(bytes[bytes.size() - back]);
    if (byte < 0x80) return 0;
    if (byte < 0xC0) continue;
    const size_t length = byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
    return back < length ? back : 0;
  }
  return 0;
}

}  // namespace

void AnswerText::add(int32_t token_id) {
  ++num_added_;
  if (tokenizer_ == nullptr) return;
  const bool is_left_out = options_.skip_special_tokens && tokenizer_->has_id(token_id) &&
                           tokenizer_->is_special(token_id);
  if (!is_left_out) bytes_ += bytes_of(*tokenizer_, token_id);
}

std::string AnswerText::shown() const {
  std::string_view bytes = bytes_;
  if (!options_.no_stop_trim) bytes.remove_suffix(stop_prefix(bytes, stop_));
  bytes.remove_suffix(open_character(bytes));
  return replace_invalid_utf8(bytes);
}

std::string AnswerText::finish(const Completion& c) {
  const bool is_trimmed = c.finish_reason == FinishReason::kStop && !options_.no_stop_trim;
  const size_t num_tokens = c.token_ids.size() - (is_trimmed && c.matched_stop.empty() ? 1 : 0);
  while (num_added_ < num_tokens) add(c.token_ids[num_added_]);
  if (is_trimmed && !c.matched_stop.empty()) {
    bytes_.resize(std::min(bytes_.find(c.matched_stop), bytes_.size()));
  }
  return replace_invalid_utf8(bytes_);
}

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  return replace_invalid_utf8(bytes_of(tokenizer, id));
}

}  // namespace fathom
