#include <optional>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/checkpoint/load.h"
#include "fathom/rollout/generate.h"

namespace fathom {

void generate_file(const ExecContext& ctx, const std::string& checkpoint_directory,
                   const std::string& input_path, const std::string& output_path,
                   const GenerateOptions& options) {
  check_sampling_params(options.sampling);
  const ModelConfig config = load_model_config(checkpoint_directory);
  std::optional<Tokenizer> tokenizer;
  if (has_tokenizer(checkpoint_directory)) tokenizer = Tokenizer::load(checkpoint_directory);
  FATHOM_CHECK(options.sampling.stop.empty() || tokenizer.has_value(), "--stop needs a tokenizer, ",
               checkpoint_directory, " has no tokenizer.json");
  const std::vector<std::vector<int32_t>> prompts = read_generate_lines(
      read_file(input_path), input_path, config, tokenizer ? &*tokenizer : nullptr);
  AtomicFileWriter output(output_path);

  const Weights weights = load_weights(checkpoint_directory, {});
  EngineOptions engine_options;
  engine_options.max_running_requests = options.max_running_requests;
  engine_options.chunked_prefill_size = options.chunked_prefill_size;
  if (tokenizer) engine_options.append_token = append_token_of(*tokenizer);
  Engine engine(ctx, weights, engine_options);
  generate(engine, prompts, options, tokenizer.has_value(), [&](std::string_view line) {
    output.write(line.data(), static_cast<int64_t>(line.size()));
  });
  output.finish();
}

}  // namespace fathom
