#include "fathom/checkpoint/training_state.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/hash.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/dcp_weights.h"

namespace fathom {
namespace {

constexpr const char* kScalarsFile = "training_state.json";
constexpr int kFormat = 1;

std::vector<const Parameter*> sorted_parameters(const Weights& weights) {
  std::vector<const Parameter*> all;
  for_each_parameter(weights, [&](const Parameter& p) { all.push_back(&p); });
  std::sort(all.begin(), all.end(), [](auto* a, auto* b) { return a->name < b->name; });
  return all;
}

// Under the lock of the save: what this renames away is removed by the next save if we are killed.
void remove_old_checkpoints(const std::string& save_dir, int64_t newest, int64_t interval) {
  for (int64_t step : list_training_states(save_dir)) {
    if (step >= newest || (step + 1) % interval == 0) continue;
    const std::string name = iteration_name(step);
    const std::string aside = join_path(save_dir, str_cat(".", name, ".partial"));
    std::error_code error;
    std::filesystem::rename(join_path(save_dir, name), aside, error);
    if (!error) std::filesystem::remove_all(aside, error);
    if (error) log_warning("cannot remove the old checkpoint ", name, ": ", error.message());
  }
}

}  // namespace

void save_training_state(const std::string& save_dir, int64_t step, const Weights& weights,
                         const std::vector<MomentsView>& moments, const Json& scalars,
                         std::optional<int64_t> retain_interval) {
  FATHOM_ASSERT(step >= 0 && (!retain_interval || *retain_interval > 0));
  const std::string name = iteration_name(step);
  const int64_t num_experts = weights.config.n_routed_experts;
  const std::string text =
      Json{{"format", kFormat}, {"step", step}, {"scalars", scalars}}.dump() + "\n";

  PendingDirectory pending(save_dir, name);
  DcpWriter writer(pending, {});
  for (const Parameter* p : sorted_parameters(weights)) {
    write_parameter(writer, "", *p, num_experts, p->master);
  }
  std::set<std::string> aliased;
  for (const MomentsView& m : moments) {
    const Parameter& p = *m.parameter;
    write_parameter(writer, kExpAvgPrefix, p, num_experts, m.exp_avg);
    write_parameter(writer, kExpAvgSqPrefix, p, num_experts, m.exp_avg_sq);
    const std::string key = megatron_slice(p.name, p.shape, num_experts).key;
    if (aliased.insert(key).second) writer.add_alias(kMasterPrefix + key, key);
  }
  pending.write(kScalarsFile, text);
  write_dcp_headers(pending, writer.finish(), name, sha256_hex(text).substr(0, 32),
                    encode_common_pt(megatron_args(weights.config), step, true));
  pending.publish();
  write_file_atomic(tracker_path(save_dir), std::to_string(step));
  if (retain_interval) remove_old_checkpoints(save_dir, step, *retain_interval);
}

Json load_training_state(const std::string& save_dir, int64_t step, Weights* weights,
                         const std::vector<MomentsView>& moments) {
  const std::string directory = join_path(save_dir, iteration_name(step));
  DcpReader reader(directory);
  const std::string scalars_path = join_path(directory, kScalarsFile);
  const Json state = read_json_file(scalars_path);
  FATHOM_CHECK(state.is_object() && state.contains("format") && state["format"] == kFormat &&
                   state.contains("step") && state["step"] == step && state.contains("scalars"),
               scalars_path, ": not the state of step ", step, " in format ", kFormat,
               "\n  fix: resume with the version of the program that wrote it");

  // A parameter that was trained and no longer is, or the other way round, would go unnoticed.
  const int64_t num_experts = weights->config.n_routed_experts;
  std::set<std::string> wanted, stored;
  for (const MomentsView& m : moments) {
    wanted.insert(megatron_slice(m.parameter->name, m.parameter->global_shape, num_experts).key);
  }
  for (const auto& [key, tensor] : reader.metadata().tensors) {
    if (key.starts_with(kExpAvgPrefix)) stored.insert(key.substr(std::strlen(kExpAvgPrefix)));
  }
  for (const std::string& key : wanted) {
    FATHOM_CHECK(stored.contains(key), directory, ": no optimizer state for ", key,
                 "\n  fix: resume with the options that the run was started with");
  }
  // A stage of a pipeline leaves the others' parameters to them.
  const bool is_stage = !weights->layout.is_first_stage || !weights->layout.is_last_stage;
  std::set<std::string> present;
  for_each_parameter(*weights, [&](Parameter& p) {
    if (is_embedding_copy(*weights, p)) return;
    present.insert(megatron_slice(p.name, p.global_shape, num_experts).key);
  });
  for (const std::string& key : stored) {
    if (is_stage && !present.contains(key)) continue;
    FATHOM_CHECK(wanted.contains(key), directory, ": optimizer state for ", key,
                 ", which this run does not train",
                 "\n  fix: resume with the options that the run was started with");
  }

  for_each_parameter(*weights, [&](Parameter& p) {
    read_parameter(reader, "", p, num_experts, &p.master);
    p.refresh();
  });
  for (const MomentsView& m : moments) {
    Tensor exp_avg = m.exp_avg, exp_avg_sq = m.exp_avg_sq;  // the same memory
    read_parameter(reader, kExpAvgPrefix, *m.parameter, num_experts, &exp_avg);
    read_parameter(reader, kExpAvgSqPrefix, *m.parameter, num_experts, &exp_avg_sq);
  }
  return state["scalars"];
}

std::optional<int64_t> latest_training_state(const std::string& save_dir) {
  const std::optional<std::string> tracker = read_tracker(save_dir);
  if (!tracker) return std::nullopt;
  FATHOM_CHECK(*tracker != "release", tracker_path(save_dir),
               " names a converted checkpoint (\"release\"), not one of a training run",
               "\n  fix: load it with --ref-load, and save into another directory");
  const std::string directory = resolve_checkpoint(save_dir);
  FATHOM_CHECK(file_exists(join_path(directory, kScalarsFile)), directory, " has no ", kScalarsFile,
               ": it is not a checkpoint of a training run of this program");
  return std::stoll(*tracker);
}

std::vector<int64_t> list_training_states(const std::string& save_dir) {
  std::vector<int64_t> steps;
  if (!directory_exists(save_dir)) return steps;
  for (const std::string& name : list_directory(save_dir)) {
    const std::optional<int64_t> step = parse_iteration_name(name);
    if (step && file_exists(join_path(join_path(save_dir, name), "metadata.json"))) {
      steps.push_back(*step);
    }
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

}  // namespace fathom
