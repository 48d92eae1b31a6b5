#include <unistd.h>

#include <cstdio>

#include "commands.h"
#include "execution.h"
#include "fathom/checkpoint/load.h"
#include "fathom/rollout/engine_options.h"
#include "fathom/rollout/generate.h"

namespace fathom {
namespace {

/// A counter that rewrites its line on a terminal; nothing elsewhere but the end.
void show_progress(int64_t num_done, int64_t num_answers) {
  const bool is_terminal = isatty(STDERR_FILENO) != 0;
  if (!is_terminal && num_done < num_answers) return;
  std::fprintf(stderr, "%sgenerate: %lld of %lld answers%s", is_terminal ? "\r" : "",
               static_cast<long long>(num_done), static_cast<long long>(num_answers),
               num_done == num_answers ? "\n" : "");
}

}  // namespace

int run_generate(const config::ParsedCommand& command) {
  const config::Options& o = command.options;
  const Execution execution(o.runtime);
  GenerateOptions options;
  options.sampling.temperature = static_cast<float>(o.tool.temperature);
  options.sampling.top_p = static_cast<float>(o.tool.top_p);
  options.sampling.top_k = o.tool.top_k;
  options.sampling.max_new_tokens = o.tool.max_new_tokens;
  options.sampling.ignore_eos = o.tool.ignore_eos;
  options.sampling.stop = o.tool.stop;
  options.num_samples = o.tool.num_samples;
  options.seed = static_cast<uint64_t>(o.train.seed);
  options.engine = engine_options(o);
  const bool with_mtp = options.engine.num_draft_tokens > 0;
  options.on_progress = show_progress;
  generate_file(execution.context(), *o.launch.hf_checkpoint, *o.tool.input, *o.tool.output,
                options, [&](const std::string& directory) {
                  const ExecContext& ctx = execution.context();
                  const LoadOptions parts = {.with_mtp = with_mtp};
                  return in_precision(ctx, load_weights(ctx, directory, parts), o);
                });
  return 0;
}

}  // namespace fathom
