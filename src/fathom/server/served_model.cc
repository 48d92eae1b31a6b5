#include "fathom/server/served_model.h"

#include <algorithm>

#include "fathom/server/http.h"

namespace fathom {

std::vector<int32_t> ServedModel::encode(const std::string& text, const std::string& field) const {
  if (!tokenizer) {
    throw HttpError(400, str_cat(field, ": the checkpoint has no tokenizer; give token ids"),
                    field);
  }
  // No token has more bytes than this, so a longer text cannot fit and need not be tokenised.
  constexpr size_t kMostTokenBytes = 1024;
  const auto context = static_cast<size_t>(config.max_position_embeddings);
  if (text.size() / kMostTokenBytes > context) {
    throw HttpError(
        400,
        str_cat(field, ": a text of ", text.size(), " bytes is longer than the model's ",
                "context of ", context, " tokens"),
        field);
  }
  try {
    return tokenizer->encode(text);
  } catch (const UserError& e) {
    throw HttpError(400, str_cat(field, ": ", e.what()), field);
  }
}

void ServedModel::check_prompt(const std::vector<int32_t>& ids, int64_t max_new_tokens,
                               const std::string& field) const {
  if (ids.empty()) throw HttpError(400, str_cat(field, ": the prompt has no tokens"), field);
  const int64_t length = static_cast<int64_t>(ids.size());
  const int64_t room = config.max_position_embeddings - (max_new_tokens > 0 ? 1 : 0);
  if (length > room) {
    throw HttpError(400,
                    str_cat(field, ": the prompt has ", length, " tokens, the model's context is ",
                            config.max_position_embeddings, " tokens",
                            max_new_tokens > 0 ? " with at least one for the answer" : ""),
                    field);
  }
  for (const int32_t id : ids) {
    if (id >= config.vocab_size) {
      throw HttpError(400,
                      str_cat(field, ": token id ", id, " is outside the model's vocabulary of ",
                              config.vocab_size),
                      field);
    }
  }
}

}  // namespace fathom
