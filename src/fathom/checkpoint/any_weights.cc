#include "fathom/checkpoint/any_weights.h"

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/dcp_weights.h"
#include "fathom/checkpoint/load.h"
#include "fathom/checkpoint/shards.h"

namespace fathom {
namespace {

bool has_file(const std::string& directory, const char* name) {
  return file_exists(join_path(directory, name));
}

bool is_torch_dist(const std::string& path) {
  return has_file(path, "metadata.json") || file_exists(tracker_path(path));
}

}  // namespace

WeightsPlace find_weights(const std::string& path) {
  FATHOM_CHECK(directory_exists(path), "no directory ", path,
               "\n  fix: give a model directory, a training checkpoint or the directory of a run");
  if (has_file(path, kIndexName) || has_file(path, kSingleFileName)) {
    return {WeightsPlace::Kind::kModelDirectory, path, ""};
  }
  const std::string of_run = join_path(path, "checkpoints");
  const std::string holder = directory_exists(of_run) && !is_torch_dist(path) ? of_run : path;
  FATHOM_CHECK(is_torch_dist(holder), path, ": no weights here: neither ", kIndexName, " nor ",
               kSingleFileName, " of a model, nor metadata.json or a tracker file of checkpoints",
               "\n  fix: give a model directory, a training checkpoint or the directory of a run");
  WeightsPlace place{WeightsPlace::Kind::kTorchDist, resolve_checkpoint(holder), ""};
  for (std::string up = place.path; up != "/" && up != "."; up = parent_path(up)) {
    if (base_name(up) == "checkpoints" && has_file(parent_path(up), "config.json")) {
      place.run_directory = parent_path(up);
      break;
    }
  }
  return place;
}

Weights load_any_weights(const ExecContext& ctx, const WeightsPlace& place,
                         const std::string& model_directory, const Layout& layout) {
  if (place.kind == WeightsPlace::Kind::kModelDirectory) {
    return load_weights(ctx, place.path, {.with_mtp = true, .layout = layout});
  }
  ModelConfig config = load_model_config(model_directory);
  const MegatronSlice mtp =
      megatron_slice("mtp.0.norm.weight", {config.hidden_size}, config.n_routed_experts);
  if (!DcpReader(place.path).contains(mtp.key)) {
    config.num_nextn_predict_layers = 0;
    config.compress_ratios.resize(static_cast<size_t>(config.num_hidden_layers));
  }
  Weights weights = make_weights(config, /*with_mtp=*/true, layout);
  for_each_parameter(weights, [](Parameter& p) { p.alloc(); });
  load_torch_dist(ctx, place.path, &weights);
  return weights;
}

}  // namespace fathom
