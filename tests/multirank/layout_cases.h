// Layouts of one model over several ranks, for the tests that compare them with one rank. A new
// layout is one line below.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "fathom/model/forward.h"
#include "tests/multirank/layouts.h"

namespace fathom {

/// Which model: the tiny recipe's, some of whose products are too narrow to be divided, or one
/// whose contractions are at least 1,024 wide, so that 8 ranks divide every product in every mode.
enum class Model { kTiny, kWide };

struct Case {
  const char* name;
  dist::MeshShape mesh;
  bool sequence_parallel;
  Model model = Model::kTiny;
};

inline ModelConfig config_of(Model model) {
  const std::string path = source_path("configs/tiny/model.json");
  Json json = read_json_file(path);
  if (model == Model::kWide) {
    json.update({{"hidden_size", 1024},
                 {"moe_intermediate_size", 1024},
                 {"num_hidden_layers", 1},
                 {"num_nextn_predict_layers", 0},
                 {"num_hash_layers", 0},
                 {"num_attention_heads", 16},
                 {"head_dim", 512},
                 {"q_lora_rank", 1024},
                 {"o_lora_rank", 128},
                 {"compress_ratios", {4}},
                 {"n_routed_experts", 2},
                 {"num_experts_per_tok", 2}});
  }
  return parse_model_config(json, path);
}

/// The whole model, made once.
inline const Weights& whole_model(Model model) {
  static std::mutex mutex;
  static std::map<Model, Weights> models;
  const std::lock_guard lock(mutex);
  if (!models.contains(model)) {
    Weights w = make_weights(config_of(model));
    init_random_weights(w, 3);
    roughen_vectors(&w);
    models.emplace(model, std::move(w));
  }
  return models.at(model);
}

inline std::vector<std::vector<int32_t>> some_sequences(Model model) {
  const std::vector<int64_t> lengths = model == Model::kTiny
                                           ? std::vector<int64_t>{37, 5, 61, 1, 18, 44}
                                           : std::vector<int64_t>{13, 22};
  std::vector<std::vector<int32_t>> sequences;
  for (int64_t n : lengths) {
    sequences.push_back(random_ids(static_cast<uint64_t>(n), n, config_of(model).vocab_size));
  }
  return sequences;
}

/// This rank's groups and its part of the model, in the mode.
struct RankModel {
  RankGroups groups;
  Weights weights;
};

inline RankModel make_rank_model(const ExecContext& ctx, dist::World& world, const Case& c,
                                 Precision precision) {
  RankModel rank;
  rank.groups = RankGroups(world.everyone(), c.mesh, c.sequence_parallel,
                           precision == Precision::kParityFp8 ? 128 : 16);
  rank.weights = shard_weights(whole_model(c.model), rank.groups.layout);
  set_precision(ctx, &rank.weights, precision);
  return rank;
}

inline void run_ranks(const Case& c,
                      const std::function<void(const ExecContext&, dist::World&)>& body) {
  const std::vector<std::string> errors =
      dist::run_local_ranks(c.mesh.size(), [&](dist::World& world) {
        ThreadPool pool(1);
        body({&pool, detect_cpu_isa()}, world);
      });
  expect_all_well(errors);
}

inline const Case kLayouts[] = {
    {"Tp2", {.tp = 2}, false},
    {"Tp4", {.tp = 4}, false},
    {"Tp8", {.tp = 8}, false},
    {"Tp2Sp", {.tp = 2}, true},
    {"Tp4Sp", {.tp = 4}, true},
    {"Tp8Sp", {.tp = 8}, true},
    {"Ep2", {.dp = 2, .ep = 2}, false},
    {"Ep8", {.dp = 8, .ep = 8}, false},
    {"Etp2", {.dp = 2, .etp = 2}, false},
    {"Tp2Ep2", {.tp = 2, .ep = 2}, false},
    {"Tp2SpEp2", {.tp = 2, .ep = 2}, true},
    {"Tp2Dp2", {.tp = 2, .dp = 2}, false},
    {"Tp2SpDp2Ep4", {.tp = 2, .dp = 2, .ep = 4}, true},
    {"Tp4SpEp2Etp2", {.tp = 4, .ep = 2, .etp = 2}, true},
    {"Tp2Dp2Ep2Etp2", {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, false},
    {"Tp2SpCp2Ep2", {.tp = 2, .cp = 2, .ep = 2}, true},
    {"Tp2Cp2Ep4", {.tp = 2, .cp = 2, .ep = 4}, false},
    {"Tp2SpCp2Dp2Ep4Etp2", {.tp = 2, .cp = 2, .dp = 2, .ep = 4, .etp = 2}, true},
    {"WideTp2", {.tp = 2}, false, Model::kWide},
    {"WideTp4SpEtp2", {.tp = 4, .etp = 2}, true, Model::kWide},
    {"WideTp8", {.tp = 8}, false, Model::kWide},
    {"WideTp8SpEp2Etp4", {.tp = 8, .ep = 2, .etp = 4}, true, Model::kWide},
};

inline constexpr int kNumTiny = 18;  // the tiny ones stand first

}  // namespace fathom
