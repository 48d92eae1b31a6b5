// Any weights of ours to a Hugging Face model directory.
#include <filesystem>
#include <memory>
#include <vector>

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

/// A path that a run was started with: as it is, else from where the run was started, else from a
/// directory around the run (of a run that does not say where it was started, or was moved).
std::string find_from_run(const std::string& path, const std::string& run_directory,
                          const std::string& started_in) {
  if (directory_exists(path) || path.starts_with("/")) return path;
  std::vector<std::string> bases;
  if (!started_in.empty()) bases.push_back(started_in);
  std::error_code error;
  std::filesystem::path around = std::filesystem::absolute(run_directory, error);
  for (; !error && around.has_relative_path(); around = around.parent_path())
    bases.push_back(around.string());
  for (const std::string& base : bases)
    if (const std::string full = join_path(base, path); directory_exists(full)) return full;
  return path;
}

/// The model directory that a run was started from, by the options that it wrote down.
std::string model_of_run(const std::string& run_directory) {
  const std::string path = join_path(run_directory, "config.json");
  const Json config = read_json_file(path);
  const Json options = config.value("options", Json::object());
  config::Options o;
  const auto text = [](const Json& json, const char* name) {
    const auto it = json.find(name);
    return it != json.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  const std::string given = text(options, "hf-checkpoint");
  if (!given.empty()) o.launch.hf_checkpoint = given;
  if (const std::string s = text(options, "model-name"); !s.empty()) o.launch.model_name = s;
  if (const std::string s = text(options, "model-dir"); !s.empty()) o.launch.model_dir = s;
  if (const std::string s = text(options, "model-local-dir"); !s.empty()) {
    o.launch.model_local_dir = s;
  }
  return find_from_run(config::derive(o).hf_checkpoint, run_directory,
                       text(config, "working_directory"));
}

/// Where config.json, the tokenizer and the generation config come from.
std::string companions_of(const WeightsPlace& place, const config::Options& o) {
  if (o.launch.hf_checkpoint) return *o.launch.hf_checkpoint;
  if (o.convert.source) return *o.convert.source;
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
  // torch_dist is read row by row; a model directory is small enough to be tried in memory.
  Weights weights;
  std::unique_ptr<ExportSource> from;
  if (place.kind == WeightsPlace::Kind::kTorchDist) {
    from = export_from_torch_dist(place.path, load_model_config(companions));
  } else {
    weights = load_any_weights(execution.context(), place, companions);
    from = export_from_memory(weights);
  }
  const ExportOptions options = {
      .output = *o.tool.output,
      .format =
          o.convert.dtype == config::ExportDtype::kFp8 ? ExportFormat::kFp8 : ExportFormat::kBf16,
      .scales = o.convert.scale_dtype == config::ScaleDtype::kF32 ? ExportScales::kF32
                                                                  : ExportScales::kE8m0,
      .names = dialect_of(o.convert.names),
      .companions = companions};
  if (o.convert.source && command.is_given("names"))
    throw ConfigError("--names and --source: with --source the names are those of " +
                      *o.convert.source + "\n  fix: leave one of the two out");
  const ExportResult done =
      o.convert.source ? export_hf_over(execution.context(), *from, *o.convert.source, options)
                       : export_hf(execution.context(), *from, options);
  log_info("export-hf: ", *o.tool.output, ": ", done.num_tensors, " tensors, ", done.num_bytes,
           " bytes, ", done.num_shards, done.num_shards == 1 ? " file" : " files");
  return 0;
}

}  // namespace fathom
