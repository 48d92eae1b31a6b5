// Text to token ids and back: byte-level BPE as a `tokenizer.json` describes it.
//   text -> added tokens cut out literally -> pre-tokenizer splits -> BPE of each piece's bytes
// Chat messages become text in chat.h; the `tokenize` command is in tokenize_lines.h.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

/// Where a sequence begins and ends, by token id.
struct SpecialIds {
  std::optional<int32_t> bos;
  std::vector<int32_t> eos;  // any of them ends a sequence; may be empty
};

/// Immutable after load(); every const member is safe to call from several threads, and results
/// depend on the arguments alone.
class Tokenizer {
 public:
  /// Reads tokenizer.json and the beginning and end tokens of `directory`. These come from
  /// generation_config.json (bos_token_id, eos_token_id), then config.json, then the token strings
  /// of tokenizer_config.json, whichever of the files exist; the first that names one wins.
  ///
  /// Supported: a BPE model without dropout, unk token, prefixes or byte fallback (`ignore_merges`
  /// is honoured, merges may be "a b" or ["a", "b"]); no normalizer; Split pre-tokenizers with an
  /// "Isolated" regex (see split_regex.h) or string, then ByteLevel without prefix space and
  /// without its own regex; a ByteLevel decoder; added tokens without lstrip, rstrip and
  /// single_word. `truncation` and `padding` are ignored: nothing is ever cut or padded. The
  /// post-processor is ignored: nothing is ever added. Errors: UserError that names the file and
  /// the component that is missing, broken or unsupported.
  static Tokenizer load(const std::string& directory);

  struct Options {
    bool use_jit = true;  // off: the regex interpreter; same ids
  };
  /// The same from the text of a tokenizer.json. `origin` names it in messages.
  static Tokenizer from_json(std::string_view json_text, const std::string& origin,
                             SpecialIds special, const Options& options);
  static Tokenizer from_json(std::string_view json_text, const std::string& origin,
                             SpecialIds special = {}) {
    return from_json(json_text, origin, std::move(special), Options());
  }

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of `text`. No BOS or EOS is added; added tokens found in the text, special or not, become
  /// their ids. Empty text gives no ids.
  /// Errors: UserError for text that is not UTF-8, and for a character that the vocabulary has no
  /// token for (possible with small vocabularies only; such a character is never dropped).
  std::vector<int32_t> encode(std::string_view text) const;

  /// Text of `ids`, special tokens kept. Bytes that are not UTF-8 (ids cut inside a character)
  /// become U+FFFD. decode(encode(text)) == text for every text that can be encoded.
  /// Errors: UserError for an id that has no token.
  std::string decode(std::span<const int32_t> ids) const;

  /// The bytes of one token: what decode() joins. Valid as long as the tokenizer.
  /// Errors: UserError for an id that has no token.
  std::string_view token_bytes(int32_t id) const;

  /// The id of a token as tokenizer.json spells it (byte-level, or an added token's text).
  std::optional<int32_t> token_to_id(std::string_view token) const;

  /// The spelling in tokenizer.json. Errors: UserError for an id that has no token.
  const std::string& id_to_token(int32_t id) const;

  bool has_id(int64_t id) const;

  /// One past the highest id (DeepSeek-V4: 129,280). A model's embedding may have more rows.
  int32_t vocab_size() const;

  /// Whether the file flags the token as special. Of V4's chat markers only BOS and EOS are.
  bool is_special(int32_t id) const;

  const SpecialIds& special_ids() const;
  bool is_eos(int32_t id) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// True when `directory` has a tokenizer.json.
bool has_tokenizer(const std::string& directory);

}  // namespace fathom
