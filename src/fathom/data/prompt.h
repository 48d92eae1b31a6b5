// Reading prompt files, jsonl or parquet, whose rows are rendered to text and token ids.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "fathom/base/json.h"

namespace fathom {

struct Prompt {
  std::string text;             // rendered, BOS included where the chat encoding writes it
  std::vector<int32_t> tokens;  // of `text`
  std::string label;
  Json metadata = Json::object();
};

struct PromptFileOptions {
  std::string input_key = "input";
  std::string label_key;                     // empty: no labels
  std::string label_option = "--label-key";  // what messages call it
  bool label_is_graded = true;  // of a worked-out answer of gsm8k the final one is the label
  std::string metadata_key = "metadata";
  std::string tool_key = "tools";
  bool apply_chat_template = false;
  Json chat_template_kwargs = Json::object();  // thinking_mode, drop_thinking, ...
  int64_t max_prompt_tokens = 0;  // 0: no limit; longer prompts are left out and counted
  bool skip_bad_lines = false;
};

/// Renders one row's prompt (a string, or a list of messages) to text.
using RenderPrompt = std::function<std::string(const Json& prompt, const Json& tools)>;
using Tokenize = std::function<std::vector<int32_t>(const std::string& text)>;

struct PromptFile {
  std::vector<Prompt> prompts;
  int64_t num_bad_lines = 0;  // skipped
  int64_t num_too_long = 0;   // left out
};

/// Reads `path`, optionally followed by "@[a:b]" (rows a to b). `.jsonl` and `.parquet` (rows.h);
/// rows of gsm8k need no mapping (gsm8k.h). Errors: UserError naming file, line or row, and key:
/// bad JSON, missing input or label, unknown suffix, or no prompt left.
PromptFile read_prompts(const std::string& path, const PromptFileOptions& options,
                        const RenderPrompt& render, const Tokenize& tokenize);

}  // namespace fathom
