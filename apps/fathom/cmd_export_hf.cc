// Any weights of ours to a Hugging Face model directory.
#include "commands.h"
#include "execution.h"
#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/any_weights.h"
#include "fathom/checkpoint/export_hf.h"
#include "fathom/config/derived.h"
#include "name_dialect.h"

namespace fathom {
namespace {

/// The model directory that a run was started from, by the options that it wrote down.
std::string model_of_run(const std::string& run_directory) {
  const std::string path = join_path(run_directory, "config.json");
  const Json config = read_json_file(path);
  const Json options = config.value("options", Json::object());
  config::Options o;
  const auto text = [&](const char* name) {
    const auto it = options.find(name);
    return it != options.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  const std::string given = text("hf-checkpoint");
  if (!given.empty()) o.launch.hf_checkpoint = given;
  if (const std::string s = text("model-name"); !s.empty()) o.launch.model_name = s;
  if (const std::string s = text("model-dir"); !s.empty()) o.launch.model_dir = s;
  if (const std::string s = text("model-local-dir"); !s.empty()) o.launch.model_local_dir = s;
  return config::derive(o).hf_checkpoint;
}

/// Where config.json, the tokenizer and the generation config come from.
std::string companions_of(const WeightsPlace& place, const config::Options& o) {
  if (o.launch.hf_checkpoint) return *o.launch.hf_checkpoint;
  if (place.kind == WeightsPlace::Kind::kModelDirectory) return place.path;
  std::string looked_for;
  if (!place.run_directory.empty()) {
    const std::string directory = model_of_run(place.run_directory);
    if (file_exists(join_path(directory, "config.json"))) return directory;
    looked_for = " (its run was started from " + directory + ", which is gone)";
  }
  throw ConfigError(place.path + " holds weights but no config.json" + looked_for +
                    "\n  fix: give --hf-checkpoint, a directory of the same model with its "
                    "config.json and tokenizer");
}

}  // namespace

int run_export_hf(const config::ParsedCommand& command) {
  const config::Options& o = command.options;
  const Execution execution(o.runtime);
  check_export_output(*o.tool.output);
  const WeightsPlace place = find_weights(*o.checkpoint.load);
  const std::string companions = companions_of(place, o);
  log_info("export-hf: ", place.path, " with config and tokenizer of ", companions);
  const Weights weights = load_any_weights(execution.context(), place, companions);
  const ExportResult done =
      export_hf(execution.context(), weights,
                {.output = *o.tool.output,
                 .format = o.convert.dtype == config::ExportDtype::kFp8 ? ExportFormat::kFp8
                                                                        : ExportFormat::kBf16,
                 .names = dialect_of(o.convert.names),
                 .companions = companions});
  log_info("export-hf: ", *o.tool.output, ": ", done.num_tensors, " tensors, ", done.num_bytes,
           " bytes, ", done.num_shards, done.num_shards == 1 ? " file" : " files");
  return 0;
}

}  // namespace fathom
