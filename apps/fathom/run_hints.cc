#include "run_hints.h"

#include <filesystem>
#include <optional>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/training_state.h"
#include "fathom/config/derived.h"

namespace fathom {
namespace {

/// The configuration that a run wrote down; nothing when there is none to read.
std::optional<Json> run_config(const std::string& run_path) {
  const std::string path = join_path(run_path, "config.json");
  if (!file_exists(path)) return std::nullopt;
  try {
    return read_json_file(path);
  } catch (const UserError&) {
    return std::nullopt;  // not a run of ours
  }
}

std::vector<std::string> changed_options(const config::ParsedCommand& command, const Json& before) {
  std::vector<std::string> lines;
  const Json options = before.value("options", Json::object());
  for (const config::ResolvedOption& o : command.resolved) {
    const auto old = options.find(o.name);
    if (!o.in_hash || old == options.end() || *old == o.value) continue;
    lines.push_back(str_cat("warning: run ", *command.options.launch.run_id, " was started with --",
                            o.name, " ", old->dump(), ", now it is ", o.value.dump()));
  }
  return lines;
}

bool is_unfinished(const std::string& run_path, const config::Options& options) {
  const std::string checkpoints = join_path(run_path, "checkpoints");
  if (!directory_exists(checkpoints)) return true;
  try {
    const auto latest = latest_training_state(checkpoints);
    return !latest || !options.rollout.num_rollout || *latest + 1 < *options.rollout.num_rollout;
  } catch (const UserError&) {
    return false;  // damaged: nothing to go on with
  }
}

std::vector<std::string> unfinished_run(const config::ParsedCommand& command) {
  const std::string& save_dir = command.options.launch.save_dir;
  if (!directory_exists(save_dir)) return {};
  const std::string hash = config::config_hash(command);
  std::string newest;
  std::filesystem::file_time_type newest_time;
  for (const std::string& name : list_directory(save_dir)) {
    const std::string run_path = join_path(save_dir, name);
    const auto config = run_config(run_path);
    if (!config || !config->is_object() || config->value("hash", "") != hash) continue;
    if (!is_unfinished(run_path, command.options)) continue;
    std::error_code error;
    const auto time = std::filesystem::last_write_time(join_path(run_path, "config.json"), error);
    if (error || (!newest.empty() && time <= newest_time)) continue;
    newest = name;
    newest_time = time;
  }
  if (newest.empty()) return {};
  return {str_cat("hint: run ", newest,
                  " has the same configuration and is not finished; --run-id ", newest,
                  " goes on with it")};
}

}  // namespace

std::vector<std::string> run_hints(const config::ParsedCommand& command) {
  if (!command.is_given("run-id")) return unfinished_run(command);
  const auto before = run_config(config::derive(command.options).run_path);
  if (!before || !before->is_object()) return {};
  return changed_options(command, *before);
}

}  // namespace fathom
