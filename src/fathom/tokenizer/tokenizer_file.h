// What tokenizer.json and its neighbours say, checked and in plain records. Used by tokenizer.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fathom/tokenizer/tokenizer.h"

namespace fathom {

struct TokenRecord {
  bool exists = false;      // ids may have holes
  bool in_model = false;    // in the BPE vocabulary, not only an added token
  bool byte_level = false;  // the spelling is in the byte alphabet
  bool special = false;
  std::string spelling;  // as in the file
  std::string bytes;     // what it decodes to: the alphabet's bytes, or the spelling itself
};

struct MergeRecord {
  int32_t left, right, result;  // ids
};

struct AddedTokenRecord {
  std::string content;
  int32_t id;
  bool normalized;
};

struct TokenizerFile {
  std::vector<TokenRecord> tokens;  // by id
  std::vector<MergeRecord> merges;  // by rank
  bool ignore_merges = false;
  std::vector<AddedTokenRecord> added_tokens;
  std::vector<std::string> split_patterns;  // in the order of application
};

/// Errors: UserError with `origin` in front; see Tokenizer::load.
TokenizerFile parse_tokenizer_file(std::string_view json_text, const std::string& origin);

/// The beginning and end tokens of a directory; see Tokenizer::load for which file wins.
/// @param token_to_id  looks up the token strings of tokenizer_config.json.
SpecialIds read_special_ids(
    const std::string& directory,
    const std::function<std::optional<int32_t>(std::string_view)>& token_to_id);

}  // namespace fathom
