#include "fathom/rollout/generate.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/base/log.h"
#include "fathom/tokenizer/chat.h"
#include "fathom/tokenizer/python_json.h"

namespace fathom {
namespace {

std::vector<int32_t> checked_ids(const Json& json, const ModelConfig& config) {
  FATHOM_CHECK(json.is_array() && !json.empty(),
               "token_ids: a list of at least one id is expected, got ",
               dump_python_json(json).substr(0, 100));
  std::vector<int32_t> ids;
  ids.reserve(json.size());
  for (const Json& item : json) {
    FATHOM_CHECK(item.is_number_integer(), "token_ids: an integer is expected, got ",
                 dump_python_json(item).substr(0, 100));
    const bool in_range = item.is_number_unsigned()
                              ? item.get<uint64_t>() < static_cast<uint64_t>(config.vocab_size)
                              : item.get<int64_t>() >= 0 && item.get<int64_t>() < config.vocab_size;
    FATHOM_CHECK(in_range, "token_ids: id ", dump_python_json(item),
                 " is outside the vocabulary of ", config.vocab_size);
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

/// The text of a line with "prompt" or "messages".
std::string prompt_text(Json line) {
  if (line.contains("prompt")) {
    FATHOM_CHECK(line.at("prompt").is_string(), "prompt: a string is expected, got ",
                 dump_python_json(line.at("prompt")).substr(0, 100));
    return line.at("prompt").get<std::string>();
  }
  const Json messages = std::move(line["messages"]);
  line.erase("messages");
  FATHOM_CHECK(messages.is_array() && !messages.empty(),
               "messages: a list of at least one message is expected");
  return encode_messages(messages, parse_chat_options(line, "chat options"));
}

std::vector<int32_t> read_line(std::string_view text, const std::string& where,
                               const ModelConfig& config, const Tokenizer* tokenizer) {
  Json line = parse_python_json(text, where);
  return with_context(where, [&] {
    FATHOM_CHECK(line.is_object(), "a JSON object is expected, got ",
                 dump_python_json(line).substr(0, 100));
    int num_kinds = 0;
    for (const char* kind : {"token_ids", "prompt", "messages"}) num_kinds += line.contains(kind);
    FATHOM_CHECK(num_kinds == 1,
                 "exactly one of \"token_ids\", \"prompt\" and \"messages\" is expected\n  got: ",
                 num_kinds, " of them");
    for (const auto& [key, value] : line.items()) {
      FATHOM_CHECK(line.contains("messages") || key == "token_ids" || key == "prompt",
                   "unknown key \"", key, "\"\n  fix: chat options go with \"messages\" only");
    }
    std::vector<int32_t> ids;
    if (line.contains("token_ids")) {
      ids = checked_ids(line.at("token_ids"), config);
    } else {
      FATHOM_CHECK(tokenizer != nullptr, "text needs a tokenizer, and the checkpoint has none",
                   "\n  fix: put tokenizer.json into its directory, or give \"token_ids\"");
      ids = tokenizer->encode(prompt_text(line));
      FATHOM_CHECK(!ids.empty(), "the prompt is empty; at least one token is needed");
      for (const int32_t id : ids) {
        FATHOM_CHECK(id < config.vocab_size, "the tokenizer gives id ", id, " (",
                     tokenizer->id_to_token(id), "), the model's vocabulary has ",
                     config.vocab_size, "\n  fix: the tokenizer belongs to another model");
      }
    }
    FATHOM_CHECK(static_cast<int64_t>(ids.size()) <= config.max_position_embeddings,
                 "the prompt has ", ids.size(), " tokens, the model's max_position_embeddings is ",
                 config.max_position_embeddings);
    return ids;
  });
}

/// Every float is written as the double it equals, so that any parser gives it back exactly.
std::string answer_line(const Completion& completion, bool with_text) {
  Json line = Json::object();
  line["index"] = completion.request_id;
  line["sample"] = completion.sample;
  line["token_ids"] = completion.token_ids;
  line["logprobs"] = completion.log_probs;
  line["finish_reason"] = finish_reason_name(completion.finish_reason);
  if (with_text) line["text"] = completion.text;
  return line.dump() + "\n";
}

}  // namespace

std::vector<std::vector<int32_t>> read_generate_lines(std::string_view input,
                                                      const std::string& origin,
                                                      const ModelConfig& config,
                                                      const Tokenizer* tokenizer) {
  std::vector<std::vector<int32_t>> prompts;
  input = input.substr(0, input.find_last_not_of(" \t\r\n") + 1);
  for (size_t at = 0, number = 1; at < input.size(); ++number) {
    const size_t end = std::min(input.find('\n', at), input.size());
    const std::string_view text = input.substr(at, end - at);
    at = end + 1;
    // An answer's `index` is its line: an empty line between others would shift the numbers.
    FATHOM_CHECK(text.find_first_not_of(" \t\r") != std::string_view::npos, origin, " line ",
                 number, ": is empty\n  fix: remove it");
    prompts.push_back(read_line(text, str_cat(origin, " line ", number), config, tokenizer));
  }
  FATHOM_CHECK(!prompts.empty(), origin,
               ": holds no lines; needs one {\"token_ids\": [...]}, {\"prompt\": \"...\"} or "
               "{\"messages\": [...]} a line");
  return prompts;
}

AppendToken append_token_of(const Tokenizer& tokenizer) {
  return [&tokenizer](int32_t id, std::string* text) {
    *text += tokenizer.has_id(id) ? tokenizer.token_bytes(id) : "\xEF\xBF\xBD";
  };
}

void generate(Engine& engine, const std::vector<std::vector<int32_t>>& prompts,
              const GenerateOptions& options, bool with_text,
              const std::function<void(std::string_view line)>& write) {
  FATHOM_CHECK(options.num_samples >= 1, "num_samples ", options.num_samples,
               ": must be at least 1");
  std::vector<int64_t> index_of_request;
  for (size_t i = 0; i < prompts.size(); ++i) {
    Request request;
    request.prompt_ids = prompts[i];
    request.sampling = options.sampling;
    for (int64_t s = 0; s < options.num_samples; ++s) {
      request.seeds.push_back(mix64(mix64(options.seed, i), static_cast<uint64_t>(s)));
    }
    index_of_request.push_back(engine.submit(std::move(request)));
  }
  const int64_t first_id = index_of_request.front();
  const int64_t num_answers = static_cast<int64_t>(prompts.size()) * options.num_samples;
  std::map<std::pair<int64_t, int64_t>, Completion> waiting;  // done, but not yet their turn
  int64_t num_done = 0, num_written = 0;
  bool is_working = true;
  while (is_working) {
    is_working = engine.step();
    const int64_t num_done_before = num_done;
    for (Completion& c : engine.take_completions()) {
      ++num_done;
      c.request_id -= first_id;
      const std::pair<int64_t, int64_t> key{c.request_id, c.sample};
      waiting.emplace(key, std::move(c));
    }
    while (!waiting.empty()) {
      const auto next = waiting.begin();
      if (next->first.first * options.num_samples + next->first.second != num_written) break;
      write(answer_line(next->second, with_text));
      waiting.erase(next);
      ++num_written;
    }
    if (options.on_progress && num_done > num_done_before) {
      options.on_progress(num_done, num_answers);
    }
  }
  FATHOM_ASSERT(num_written == num_answers, num_written, " of ", num_answers, " answers");
}

void generate_file(const ExecContext& ctx, const std::string& checkpoint_directory,
                   const std::string& input_path, const std::string& output_path,
                   const GenerateOptions& options, const LoadWeights& load) {
  check_sampling_params(options.sampling);
  const ModelConfig config = load_model_config(checkpoint_directory);
  std::optional<Tokenizer> tokenizer;
  if (has_tokenizer(checkpoint_directory)) tokenizer = Tokenizer::load(checkpoint_directory);
  FATHOM_CHECK(options.sampling.stop.empty() || tokenizer.has_value(), "--stop needs a tokenizer, ",
               checkpoint_directory, " has no tokenizer.json");
  const std::vector<std::vector<int32_t>> prompts = read_generate_lines(
      read_file(input_path), input_path, config, tokenizer ? &*tokenizer : nullptr);
  // The output takes the place of whatever has its name, which must not be a device or a directory.
  std::error_code unreadable;  // then the writer says why
  const std::filesystem::file_status status = std::filesystem::status(output_path, unreadable);
  FATHOM_CHECK(!std::filesystem::exists(status) || std::filesystem::is_regular_file(status),
               "cannot write ", output_path, ": it exists and is not a regular file",
               "\n  fix: name a file");
  AtomicFileWriter output(output_path);

  const Weights weights = load(checkpoint_directory);
  EngineOptions engine_options = options.engine;
  if (tokenizer) engine_options.append_token = append_token_of(*tokenizer);
  Engine engine(ctx, weights, engine_options);
  generate(engine, prompts, options, tokenizer.has_value(), [&](std::string_view line) {
    output.write(line.data(), static_cast<int64_t>(line.size()));
  });
  output.finish();
  const EngineCounters counters = engine.counters();
  if (counters.num_drafted > 0) {
    log_info("speculation guessed ", counters.num_drafted, " tokens, of which ",
             counters.num_accepted, " were right (", counters.acceptance_rate(), "); ",
             counters.num_generated_tokens, " tokens in ", counters.num_steps, " steps");
  }
}

}  // namespace fathom
