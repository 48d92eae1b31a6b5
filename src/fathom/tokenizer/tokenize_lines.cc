#include "fathom/tokenizer/tokenize_lines.h"

#include <cstdio>
#include <iostream>
#include <iterator>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/tokenizer/chat.h"
#include "fathom/tokenizer/python_json.h"

namespace fathom {
namespace {

struct Line {
  std::string where;        // "<origin> line <n>"
  bool is_ids = false;      // ids to text, else text to ids
  bool shows_text = false;  // the text was rendered here, so it is part of the answer
  std::string text;
  std::vector<int32_t> ids;
};

std::vector<int32_t> checked_ids(const Json& json, const Tokenizer& tokenizer) {
  FATHOM_CHECK(json.is_array() && !json.empty(),
               "token_ids: a list of at least one id is expected, got ", dump_python_json(json));
  std::vector<int32_t> ids;
  ids.reserve(json.size());
  for (const Json& item : json) {
    FATHOM_CHECK(item.is_number_integer(), "token_ids: an integer is expected, got ",
                 dump_python_json(item));
    const bool fits = !item.is_number_unsigned() || item.get<uint64_t>() <= INT32_MAX;
    FATHOM_CHECK(fits && tokenizer.has_id(item.get<int64_t>()), "token_ids: no token has the id ",
                 dump_python_json(item), "\n  fix: use ids from 0 to ", tokenizer.vocab_size() - 1);
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

Line read_line(std::string_view text, const std::string& where, const Tokenizer& tokenizer) {
  Json json = parse_python_json(text, where);
  return with_context(where, [&] {
    FATHOM_CHECK(json.is_object(), "a JSON object is expected, got ",
                 dump_python_json(json).substr(0, 100));
    Line line;
    line.where = where;
    const int num_kinds = static_cast<int>(json.contains("text")) +
                          static_cast<int>(json.contains("token_ids")) +
                          static_cast<int>(json.contains("messages"));
    FATHOM_CHECK(num_kinds == 1,
                 "exactly one of \"text\", \"token_ids\" and \"messages\" is expected",
                 "\n  got: ", num_kinds, " of them");
    if (json.contains("messages")) {
      const Json messages = std::move(json["messages"]);
      json.erase("messages");
      FATHOM_CHECK(messages.is_array() && !messages.empty(),
                   "messages: a list of at least one message is expected");
      line.text = encode_messages(messages, parse_chat_options(json, "chat options"));
      line.shows_text = true;
      return line;
    }
    for (const auto& [key, value] : json.items()) {
      FATHOM_CHECK(key == "text" || key == "token_ids", "unknown key \"", key,
                   "\"\n  fix: chat options go with \"messages\" only");
    }
    line.is_ids = json.contains("token_ids");
    if (line.is_ids) {
      line.ids = checked_ids(json.at("token_ids"), tokenizer);
    } else {
      FATHOM_CHECK(json.at("text").is_string(), "text: a string is expected, got ",
                   dump_python_json(json.at("text")).substr(0, 100));
      line.text = json.at("text").get<std::string>();
    }
    return line;
  });
}

}  // namespace

std::string tokenize_lines(const Tokenizer& tokenizer, std::string_view input,
                           const std::string& origin) {
  std::vector<Line> lines;
  for (size_t at = 0, number = 1; at < input.size(); ++number) {
    const size_t end = std::min(input.find('\n', at), input.size());
    const std::string_view text = input.substr(at, end - at);
    at = end + 1;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    lines.push_back(read_line(text, str_cat(origin, " line ", number), tokenizer));
  }
  std::string out;
  for (Line& line : lines) {
    Json answer = Json::object();
    if (line.is_ids) {
      answer["text"] = tokenizer.decode(line.ids);
    } else {
      if (line.shows_text) answer["text"] = line.text;
      answer["token_ids"] = with_context(line.where, [&] { return tokenizer.encode(line.text); });
    }
    out += answer.dump();
    out += '\n';
  }
  return out;
}

void tokenize_files(const std::string& directory, const std::optional<std::string>& input,
                    const std::optional<std::string>& output) {
  const Tokenizer tokenizer = Tokenizer::load(directory);
  const bool from_stdin = !input || *input == "-";
  const std::string text =
      from_stdin ? std::string(std::istreambuf_iterator<char>(std::cin), {}) : read_file(*input);
  const std::string answers =
      tokenize_lines(tokenizer, text, from_stdin ? "standard input" : *input);
  if (output && *output != "-") return write_file_atomic(*output, answers);
  const bool written = std::fwrite(answers.data(), 1, answers.size(), stdout) == answers.size() &&
                       std::fflush(stdout) == 0;
  FATHOM_CHECK(written, "cannot write to standard output");
}

}  // namespace fathom
