#include "fathom/data/prompt.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "fathom/base/error.h"
#include "fathom/base/log.h"
#include "fathom/data/gsm8k.h"
#include "fathom/data/rows.h"

namespace fathom {
namespace {

/// Splits "file.jsonl@[a:b]"; either number may be left out.
std::string split_row_range(const std::string& path, RowRange* range) {
  const size_t at = path.rfind("@[");
  if (at == std::string::npos || path.back() != ']') return path;
  const std::string inside = path.substr(at + 2, path.size() - at - 3);
  const size_t colon = inside.find(':');
  auto number = [&](const std::string& text, int64_t otherwise) {
    if (text.empty()) return otherwise;
    int64_t value = 0;
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    FATHOM_CHECK(error == std::errc() && rest == text.data() + text.size() && value >= 0,
                 "prompt file ", path, ": the row range needs numbers >= 0, as in @[0:100]");
    return value;
  };
  FATHOM_CHECK(colon != std::string::npos, "prompt file ", path,
               ": the row range needs a colon, as in @[0:100]");
  range->begin = number(inside.substr(0, colon), 0);
  if (colon + 1 < inside.size()) range->end = number(inside.substr(colon + 1), 0);
  return path.substr(0, at);
}

std::string label_of(const Json& row, const PromptFileOptions& options, const std::string& origin) {
  const std::string& key = options.label_key;
  if (key.empty()) return "";
  FATHOM_CHECK(row.contains(key), origin, ": the label \"", key,
               "\" is missing\n  fix: add it, or name another field with ", options.label_option);
  const Json& label = row[key];
  FATHOM_CHECK(label.is_string() || label.is_number(), origin, ": the label \"", key, "\" is ",
               label.dump(), ", needs a string or a number");
  return label.is_string() ? label.get<std::string>() : label.dump();
}

Prompt parse_row(const Json& row, const std::string& origin, const PromptFileOptions& options,
                 const RenderPrompt& render, const Tokenize& tokenize) {
  FATHOM_CHECK(row.is_object(), origin, ": needs a JSON object, got ", row.dump().substr(0, 80));
  FATHOM_CHECK(row.contains(options.input_key), origin, ": the prompt \"", options.input_key,
               "\" is missing\n  fix: add it, or name another field with --input-key");
  Prompt prompt;
  prompt.label = label_of(row, options, origin);
  if (row.contains(options.metadata_key) && row[options.metadata_key].is_object()) {
    prompt.metadata = row[options.metadata_key];
  }
  Json tools;
  if (row.contains(options.tool_key)) {
    const Json& given = row[options.tool_key];
    tools = given.is_string() ? parse_json(given.get<std::string>(), origin + " tools") : given;
  }
  const Json& input = row[options.input_key];
  with_context(origin, [&] {
    if (options.apply_chat_template) {
      const Json messages =
          input.is_string() ? Json::array({Json{{"role", "user"}, {"content", input}}}) : input;
      prompt.text = render(messages, tools);
    } else {
      FATHOM_CHECK(input.is_string(), "the prompt is ", input.dump().substr(0, 80),
                   ", needs a string\n  fix: pass --apply-chat-template for lists of messages");
      prompt.text = input.get<std::string>();
    }
    prompt.tokens = tokenize(prompt.text);
    FATHOM_CHECK(!prompt.tokens.empty(), "the prompt is empty");
  });
  return prompt;
}

}  // namespace

PromptFile read_prompts(const std::string& path_with_range, const PromptFileOptions& options,
                        const RenderPrompt& render, const Tokenize& tokenize) {
  RowRange range;
  const std::string path = split_row_range(path_with_range, &range);
  PromptFile file;
  for_each_row(path, range, [&](const Row& row) {
    try {
      Json fields = row.parse();
      complete_gsm8k_row(options, &fields);
      Prompt prompt = parse_row(fields, row.origin, options, render, tokenize);
      if (options.max_prompt_tokens > 0 &&
          static_cast<int64_t>(prompt.tokens.size()) > options.max_prompt_tokens) {
        ++file.num_too_long;
      } else {
        file.prompts.push_back(std::move(prompt));
      }
    } catch (const UserError& e) {
      if (!options.skip_bad_lines) {
        throw UserError(str_cat(e.what(), "\n  fix: mend it, or pass --skip-bad-lines"));
      }
      ++file.num_bad_lines;
    }
  });
  if (file.num_too_long > 0) {
    log_info("Filtered ", file.num_too_long,
             " samples longer than max_length=", options.max_prompt_tokens, ".");
  }
  if (file.num_bad_lines > 0) log_warning(path, ": skipped ", file.num_bad_lines, " bad lines");
  FATHOM_CHECK(!file.prompts.empty(), path, ": no prompt is left (", file.num_too_long,
               " too long, ", file.num_bad_lines,
               " bad lines)\n  fix: look at the file, the row range and ",
               "the limit on prompt length");
  return file;
}

}  // namespace fathom
