#include "fathom/tokenizer/tokenizer.h"

#include <algorithm>
#include <cstdio>
#include <unordered_map>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/tokenizer/added_tokens.h"
#include "fathom/tokenizer/bpe.h"
#include "fathom/tokenizer/split_regex.h"
#include "fathom/tokenizer/tokenizer_file.h"
#include "fathom/tokenizer/utf8.h"

namespace fathom {

struct Tokenizer::Impl {
  std::string origin;
  std::vector<TokenRecord> tokens;  // by id; never resized after loading
  std::unordered_map<std::string_view, int32_t> id_of_spelling;
  std::unique_ptr<BpeModel> bpe;
  std::vector<SplitRegex> splits;
  // The library looks for tokens that are not "normalized" first, in the whole text, and for the
  // others in what is left between them.
  AddedTokenMatcher first_pass, second_pass;
  SpecialIds special;

  const TokenRecord& token(int64_t id) const {
    FATHOM_CHECK(id >= 0 && id < static_cast<int64_t>(tokens.size()) &&
                     tokens[static_cast<size_t>(id)].exists,
                 "tokenizer: no token has the id ", id, "; ids of ", origin, " go from 0 to ",
                 tokens.size() - 1);
    return tokens[static_cast<size_t>(id)];
  }
};

namespace {

/// One encode() call: walks a text through the passes and collects ids.
class Encoding {
 public:
  Encoding(std::string_view text, const BpeModel& bpe, const std::vector<SplitRegex>& splits,
           size_t num_tokens, const std::string& origin)
      : text_(text), bpe_(bpe), splits_(splits), num_tokens_(num_tokens), origin_(origin) {}

  void cut_added_tokens(std::string_view part, std::span<const AddedTokenMatcher* const> passes) {
    if (passes.empty()) {
      if (!part.empty()) split(part, 0);
      return;
    }
    size_t at = 0;
    AddedTokenMatcher::Match match;
    while (passes[0]->find(part, at, &match)) {
      cut_added_tokens(part.substr(at, match.begin - at), passes.subspan(1));
      ids_.push_back(match.id);
      at = match.end;
    }
    cut_added_tokens(part.substr(at), passes.subspan(1));
  }

  std::vector<int32_t> take_ids() { return std::move(ids_); }

 private:
  // "Isolated": matches are pieces of their own, and so is what lies between two matches.
  void split(std::string_view part, size_t level) {
    if (level == splits_.size()) return merge(part);
    size_t at = 0;
    TextRange match;
    while (at < part.size() && splits_[level].find(part, at, regex_scratch_, &match)) {
      if (match.begin > at) split(part.substr(at, match.begin - at), level + 1);
      split(part.substr(match.begin, match.end - match.begin), level + 1);
      at = match.end;
    }
    if (at < part.size()) split(part.substr(at), level + 1);
  }

  void merge(std::string_view piece) {
    const size_t missing = bpe_.encode(piece, bpe_scratch_, ids_);
    if (missing == std::string_view::npos) return;
    size_t begin = static_cast<size_t>(piece.data() - text_.data()) + missing;
    while ((static_cast<uint8_t>(text_[begin]) & 0xC0) == 0x80) --begin;
    size_t end = begin;
    const uint32_t code_point = next_code_point(text_, end);
    char hex[16];
    std::snprintf(hex, sizeof(hex), "U+%04X", code_point);
    throw UserError(str_cat(
        "tokenizer: no token for the character ",
        code_point < 0x20 ? std::string() : str_cat("\"", text_.substr(begin, end - begin), "\" "),
        hex, " at byte ", begin, " of the text\n  got: a vocabulary of ", num_tokens_,
        " tokens that does not cover every byte (", origin_,
        ")\n  fix: use only characters that this vocabulary has, or a tokenizer with all 256 "
        "bytes"));
  }

  std::string_view text_;
  const BpeModel& bpe_;
  const std::vector<SplitRegex>& splits_;
  size_t num_tokens_;
  const std::string& origin_;
  SplitRegex::Scratch regex_scratch_;
  BpeModel::Scratch bpe_scratch_;
  std::vector<int32_t> ids_;
};

void check_special_ids(const SpecialIds& special, size_t num_tokens, const std::string& origin) {
  const auto check = [&](int32_t id, const char* name) {
    FATHOM_CHECK(id >= 0 && static_cast<size_t>(id) < num_tokens, "tokenizer: ", name, " ", id,
                 " is outside the vocabulary of ", num_tokens, " tokens (", origin, ")");
  };
  if (special.bos) check(*special.bos, "bos_token_id");
  for (const int32_t id : special.eos) check(id, "eos_token_id");
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

bool has_tokenizer(const std::string& directory) {
  return file_exists(join_path(directory, "tokenizer.json"));
}

Tokenizer Tokenizer::load(const std::string& directory) {
  const std::string path = join_path(directory, "tokenizer.json");
  FATHOM_CHECK(
      file_exists(path), "tokenizer: ", directory,
      " has no tokenizer.json\n  fix: give the directory of a checkpoint, or of a tokenizer");
  Tokenizer tokenizer = from_json(read_file(path), path);
  tokenizer.impl_->special = read_special_ids(
      directory, [&](std::string_view token) { return tokenizer.token_to_id(token); });
  check_special_ids(tokenizer.impl_->special, tokenizer.impl_->tokens.size(), path);
  return tokenizer;
}

Tokenizer Tokenizer::from_json(std::string_view json_text, const std::string& origin,
                               SpecialIds special, const Options& options) {
  TokenizerFile file = parse_tokenizer_file(json_text, origin);
  auto impl = std::make_unique<Impl>();
  impl->origin = origin;
  impl->tokens = std::move(file.tokens);
  std::vector<std::string_view> mergeable(impl->tokens.size());
  for (size_t id = 0; id < impl->tokens.size(); ++id) {
    const TokenRecord& token = impl->tokens[id];
    if (!token.exists) continue;
    impl->id_of_spelling.emplace(token.spelling, static_cast<int32_t>(id));
    if (token.in_model && token.byte_level) mergeable[id] = token.bytes;
  }
  impl->bpe = std::make_unique<BpeModel>(mergeable, file.ignore_merges);
  for (const MergeRecord& merge : file.merges) {
    impl->bpe->add_merge(merge.left, merge.right, merge.result);
  }
  for (const std::string& pattern : file.split_patterns) {
    impl->splits.push_back(
        with_context(origin, [&] { return SplitRegex(pattern, options.use_jit); }));
  }
  for (const AddedTokenRecord& added : file.added_tokens) {
    (added.normalized ? impl->second_pass : impl->first_pass).add(added.content, added.id);
  }
  check_special_ids(special, impl->tokens.size(), origin);
  impl->special = std::move(special);
  return Tokenizer(std::move(impl));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  FATHOM_CHECK(text.size() < (size_t{1} << 31), "tokenizer: a text of ", text.size(),
               " bytes is too long; the most is 2^31 - 1");
  if (const auto bad = find_invalid_utf8(text)) {
    throw UserError(str_cat("tokenizer: the text is not UTF-8 at byte ", *bad));
  }
  Encoding encoding(text, *impl_->bpe, impl_->splits, impl_->tokens.size(), impl_->origin);
  const AddedTokenMatcher* const passes[] = {&impl_->first_pass, &impl_->second_pass};
  encoding.cut_added_tokens(text, passes);
  return encoding.take_ids();
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string bytes;
  for (const int32_t id : ids) bytes.append(impl_->token(id).bytes);
  return find_invalid_utf8(bytes) ? replace_invalid_utf8(bytes) : bytes;
}

std::string_view Tokenizer::token_bytes(int32_t id) const { return impl_->token(id).bytes; }

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const auto found = impl_->id_of_spelling.find(token);
  if (found == impl_->id_of_spelling.end()) return std::nullopt;
  return found->second;
}

const std::string& Tokenizer::id_to_token(int32_t id) const { return impl_->token(id).spelling; }

bool Tokenizer::has_id(int64_t id) const {
  return id >= 0 && id < vocab_size() && impl_->tokens[static_cast<size_t>(id)].exists;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->tokens.size()); }

bool Tokenizer::is_special(int32_t id) const { return impl_->token(id).special; }

const SpecialIds& Tokenizer::special_ids() const { return impl_->special; }

bool Tokenizer::is_eos(int32_t id) const {
  const auto& eos = impl_->special.eos;
  return std::find(eos.begin(), eos.end(), id) != eos.end();
}

}  // namespace fathom
