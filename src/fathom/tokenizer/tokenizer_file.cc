#include "fathom/tokenizer/tokenizer_file.h"

#include <nlohmann/json.hpp>
#include <unordered_map>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/tokenizer/byte_level.h"

namespace fathom {
namespace {

// Not fathom::Json: a vocabulary is an object of 128,000 keys, and ordered_json finds keys by going
// through all of them.
using PlainJson = nlohmann::json;

constexpr int64_t kMaxId = 1 << 20;  // a table has a row for every id below the highest

std::string short_dump(const PlainJson& json) {
  const std::string text = json.dump(-1, ' ', false, PlainJson::error_handler_t::replace);
  return text.size() <= 100 ? text : text.substr(0, 100) + "...";
}

class Parser {
 public:
  explicit Parser(const PlainJson& root) : root_(root) {}

  TokenizerFile run() {
    FATHOM_CHECK(root_.is_object(), "a JSON object is expected, got ", short_dump(root_));
    check_normalizer();
    check_decoder();
    const PlainJson& model = object_at(root_, "model");
    check_model(model);
    read_vocabulary(model);
    read_merges(model);
    read_added_tokens();
    read_pre_tokenizer();
    return std::move(file_);
  }

 private:
  [[noreturn]] static void unsupported(const std::string& what, const PlainJson& got) {
    throw UserError(str_cat(what, " is not supported\n  got: ", short_dump(got),
                            "\n  fix: use a byte-level BPE tokenizer.json such as DeepSeek-V4's"));
  }

  static const PlainJson& object_at(const PlainJson& json, const char* key) {
    const auto found = json.find(key);
    FATHOM_CHECK(found != json.end() && found->is_object(), "\"", key, "\" must be an object");
    return *found;
  }

  static bool is_absent(const PlainJson& json, const char* key) {
    return !json.contains(key) || json.at(key).is_null();
  }

  static bool flag(const PlainJson& json, const char* key, bool fallback) {
    if (is_absent(json, key)) return fallback;
    FATHOM_CHECK(json.at(key).is_boolean(), "\"", key, "\" must be true or false, got ",
                 short_dump(json.at(key)));
    return json.at(key).get<bool>();
  }

  static std::string type_of(const PlainJson& json, const char* component) {
    FATHOM_CHECK(json.is_object() && json.contains("type") && json.at("type").is_string(),
                 component, ": an object with a \"type\" is expected, got ", short_dump(json));
    return json.at("type").get<std::string>();
  }

  void check_normalizer() const {
    if (is_absent(root_, "normalizer")) return;
    const PlainJson& normalizer = root_.at("normalizer");
    const std::string type = type_of(normalizer, "normalizer");
    if (type == "Sequence" && normalizer.value("normalizers", PlainJson::array()).empty()) return;
    unsupported(str_cat("normalizer ", type), normalizer);
  }

  void check_decoder() const {
    const PlainJson decoder = root_.value("decoder", PlainJson());
    if (decoder.is_null()) unsupported("a tokenizer without a decoder", decoder);
    const std::string type = type_of(decoder, "decoder");
    if (type != "ByteLevel") unsupported(str_cat("decoder ", type), decoder);
  }

  static void check_model(const PlainJson& model) {
    // Files from before the field was written have BPE models only.
    const std::string type = is_absent(model, "type") ? "BPE" : type_of(model, "model");
    if (type != "BPE") unsupported(str_cat("model ", type), type);
    for (const char* key :
         {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
      if (is_absent(model, key) || model.at(key) == "" || model.at(key) == 0.0) continue;
      unsupported(str_cat("model.", key), model.at(key));
    }
    if (flag(model, "byte_fallback", false)) unsupported("model.byte_fallback", true);
  }

  TokenRecord& record_at(int64_t id) {
    if (static_cast<size_t>(id) >= file_.tokens.size())
      file_.tokens.resize(static_cast<size_t>(id) + 1);
    return file_.tokens[static_cast<size_t>(id)];
  }

  static int64_t checked_id(const PlainJson& json, const std::string& token) {
    FATHOM_CHECK(
        json.is_number_integer() && json.get<int64_t>() >= 0 && json.get<int64_t>() < kMaxId,
        "the id of token \"", token, "\" must be a number from 0 to ", kMaxId - 1, ", got ",
        short_dump(json));
    return json.get<int64_t>();
  }

  static void spell(TokenRecord& record, const std::string& spelling) {
    record.exists = true;
    record.spelling = spelling;
    if (auto bytes = bytes_of_spelled_token(spelling)) {
      record.byte_level = true;
      record.bytes = std::move(*bytes);
    } else {
      record.bytes = spelling;
    }
  }

  void read_vocabulary(const PlainJson& model) {
    const PlainJson& vocabulary = object_at(model, "vocab");
    FATHOM_CHECK(!vocabulary.empty(), "model.vocab is empty");
    file_.tokens.reserve(vocabulary.size() + 2048);
    for (const auto& [token, id_json] : vocabulary.items()) {
      const int64_t id = checked_id(id_json, token);
      TokenRecord& record = record_at(id);
      FATHOM_CHECK(!record.exists, "model.vocab: the tokens \"", record.spelling, "\" and \"",
                   token, "\" have the same id ", id);
      spell(record, token);
      record.in_model = true;
    }
    // Only now: records no longer move.
    for (size_t id = 0; id < file_.tokens.size(); ++id) {
      if (file_.tokens[id].exists) {
        id_of_spelling_.emplace(file_.tokens[id].spelling, static_cast<int32_t>(id));
      }
    }
  }

  void read_merges(const PlainJson& model) {
    file_.ignore_merges = flag(model, "ignore_merges", false);
    if (is_absent(model, "merges")) return;
    const PlainJson& merges = model.at("merges");
    FATHOM_CHECK(merges.is_array(), "model.merges must be a list");
    file_.merges.reserve(merges.size());
    for (size_t i = 0; i < merges.size(); ++i) {
      const auto [left, right] = split_merge(merges[i], i);
      const auto id_of = [&](const std::string& token) {
        const auto found = id_of_spelling_.find(token);
        FATHOM_CHECK(found != id_of_spelling_.end(), "model.merges[", i, "]: \"", token,
                     "\" is not in the vocabulary\n  got: ", short_dump(merges[i]));
        FATHOM_CHECK(file_.tokens[static_cast<size_t>(found->second)].byte_level, "model.merges[",
                     i, "]: \"", token, "\" is not spelled in the byte alphabet");
        return found->second;
      };
      file_.merges.push_back({id_of(left), id_of(right), id_of(left + right)});
    }
  }

  static std::pair<std::string, std::string> split_merge(const PlainJson& merge, size_t i) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      return {merge[0].get<std::string>(), merge[1].get<std::string>()};
    }
    if (merge.is_string()) {
      const std::string text = merge.get<std::string>();
      const size_t space = text.find(' ');
      if (space != std::string::npos && space > 0 && space + 1 < text.size() &&
          text.find(' ', space + 1) == std::string::npos) {
        return {text.substr(0, space), text.substr(space + 1)};
      }
    }
    throw UserError(str_cat("model.merges[", i,
                            "]: \"left right\" or [\"left\", \"right\"] is expected, got ",
                            short_dump(merge)));
  }

  void read_added_tokens() {
    const PlainJson added = root_.value("added_tokens", PlainJson::array());
    FATHOM_CHECK(added.is_array(), "added_tokens must be a list");
    for (const PlainJson& item : added) {
      FATHOM_CHECK(item.is_object() && item.contains("content") && item.at("content").is_string() &&
                       item.contains("id"),
                   "added_tokens: an object with \"id\" and \"content\" is expected, got ",
                   short_dump(item));
      const std::string content = item.at("content").get<std::string>();
      const int64_t id = checked_id(item.at("id"), content);
      FATHOM_CHECK(!content.empty(), "added_tokens: the token with id ", id, " is empty");
      for (const char* key : {"lstrip", "rstrip", "single_word"}) {
        if (flag(item, key, false)) unsupported(str_cat("added token with ", key), item);
      }
      const auto in_model = id_of_spelling_.find(content);
      FATHOM_CHECK(in_model == id_of_spelling_.end() || in_model->second == id, "added token \"",
                   content, "\" has the id ", id, ", but model.vocab gives it ",
                   in_model == id_of_spelling_.end() ? 0 : in_model->second);
      TokenRecord& record = record_at(id);
      FATHOM_CHECK(!record.exists || record.spelling == content, "added token \"", content,
                   "\" has the id ", id, " of another token, \"", record.spelling, "\"");
      if (!record.exists) spell(record, content);
      record.special = record.special || flag(item, "special", false);
      file_.added_tokens.push_back(
          {content, static_cast<int32_t>(id), flag(item, "normalized", true)});
    }
  }

  void read_pre_tokenizer() {
    const PlainJson root = root_.value("pre_tokenizer", PlainJson());
    if (root.is_null()) unsupported("a tokenizer without a pre_tokenizer", root);
    std::vector<PlainJson> steps;
    if (type_of(root, "pre_tokenizer") == "Sequence") {
      const PlainJson list = root.value("pretokenizers", PlainJson());
      FATHOM_CHECK(list.is_array(), "pre_tokenizer.pretokenizers must be a list");
      steps.assign(list.begin(), list.end());
    } else {
      steps.push_back(root);
    }
    bool byte_level = false;
    for (const PlainJson& step : steps) {
      const std::string type = type_of(step, "pre_tokenizer");
      if (byte_level) unsupported(str_cat("pre_tokenizer ", type, " after ByteLevel"), step);
      if (type == "Split") {
        file_.split_patterns.push_back(split_pattern(step));
      } else if (type == "ByteLevel") {
        if (flag(step, "add_prefix_space", true) || flag(step, "use_regex", true)) {
          unsupported("pre_tokenizer ByteLevel with add_prefix_space or use_regex", step);
        }
        byte_level = true;
      } else {
        unsupported(str_cat("pre_tokenizer ", type), step);
      }
    }
    if (!byte_level) unsupported("a pre_tokenizer without ByteLevel", root);
  }

  static std::string split_pattern(const PlainJson& step) {
    const PlainJson behavior = step.value("behavior", PlainJson());
    if (behavior != "Isolated" || flag(step, "invert", false)) {
      unsupported("pre_tokenizer Split other than \"Isolated\" and not inverted", step);
    }
    const PlainJson pattern = step.value("pattern", PlainJson());
    if (pattern.is_object() && pattern.contains("Regex") && pattern.at("Regex").is_string()) {
      return pattern.at("Regex").get<std::string>();
    }
    if (pattern.is_object() && pattern.contains("String") && pattern.at("String").is_string()) {
      std::string quoted;
      for (const char c : pattern.at("String").get<std::string>()) {
        if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) quoted += '\\';
        quoted += c;
      }
      return quoted;
    }
    unsupported("pre_tokenizer Split without a Regex or String pattern", step);
  }

  const PlainJson& root_;
  TokenizerFile file_;
  std::unordered_map<std::string, int32_t> id_of_spelling_;  // of the model's vocabulary
};

void take_ids(const Json& json, const std::string& path, SpecialIds& special, bool& have_eos) {
  const auto id = [&](const Json& value, const char* key) {
    FATHOM_CHECK(
        value.is_number_integer() && value.get<int64_t>() >= 0 && value.get<int64_t>() < kMaxId,
        path, ": ", key, " must be a token id, got ", value.dump());
    return value.get<int32_t>();
  };
  if (!special.bos && json.contains("bos_token_id") && !json.at("bos_token_id").is_null()) {
    special.bos = id(json.at("bos_token_id"), "bos_token_id");
  }
  if (have_eos || !json.contains("eos_token_id") || json.at("eos_token_id").is_null()) return;
  const Json& eos = json.at("eos_token_id");
  if (eos.is_array()) {
    for (const Json& item : eos) special.eos.push_back(id(item, "eos_token_id"));
  } else {
    special.eos.push_back(id(eos, "eos_token_id"));
  }
  have_eos = true;
}

// "bos_token": "<s>" or {"content": "<s>", ...}
std::string token_string(const Json& json, const char* key) {
  if (!json.contains(key)) return "";
  const Json& value = json.at(key);
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value.at("content").is_string()) {
    return value.at("content").get<std::string>();
  }
  return "";
}

}  // namespace

TokenizerFile parse_tokenizer_file(std::string_view json_text, const std::string& origin) {
  PlainJson root;
  try {
    root = PlainJson::parse(json_text.begin(), json_text.end());
  } catch (const PlainJson::exception& e) {
    throw UserError(str_cat(origin, ": not valid JSON: ", e.what()));
  }
  return with_context(origin, [&] { return Parser(root).run(); });
}

SpecialIds read_special_ids(
    const std::string& directory,
    const std::function<std::optional<int32_t>(std::string_view)>& token_to_id) {
  SpecialIds special;
  bool have_eos = false;
  for (const char* name : {"generation_config.json", "config.json"}) {
    const std::string path = join_path(directory, name);
    if (!file_exists(path)) continue;
    const Json json = read_json_file(path);
    FATHOM_CHECK(json.is_object(), path, ": a JSON object is expected");
    take_ids(json, path, special, have_eos);
  }
  const std::string path = join_path(directory, "tokenizer_config.json");
  if (!file_exists(path)) return special;
  const Json json = read_json_file(path);
  FATHOM_CHECK(json.is_object(), path, ": a JSON object is expected");
  const std::string bos = token_string(json, "bos_token");
  const std::string eos = token_string(json, "eos_token");
  for (const std::string& token : {bos, eos}) {
    FATHOM_CHECK(token.empty() || token_to_id(token), path, ": the token \"", token,
                 "\" is not in tokenizer.json");
  }
  if (!special.bos && !bos.empty()) special.bos = token_to_id(bos);
  if (!have_eos && !eos.empty()) special.eos.push_back(*token_to_id(eos));
  return special;
}

}  // namespace fathom
