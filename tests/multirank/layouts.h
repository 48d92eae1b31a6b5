// Layouts of a few ranks, for tests over them.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <string>

#include "fathom/dist/local_ranks.h"
#include "fathom/dist/mesh.h"
#include "fathom/parallel/rank_groups.h"
#include "tests/integration/tiny_model.h"

namespace fathom {

struct TestLayout {
  int pp = 1, cp = 1, dp = 1, tp = 1, ep = 1;
  bool sequence_parallel = false;
  std::optional<int64_t> first_layers = {}, last_layers = {};  // of the first and the last stage
  int num_ranks() const { return pp * cp * dp * tp; }
  std::string text() const {
    std::string name;
    const auto add = [&](const char* axis, int size) {
      if (size > 1) name += str_cat(axis, size);
    };
    add("pp", pp);
    add("tp", tp);
    add("cp", cp);
    add("dp", dp);
    add("ep", ep);
    if (sequence_parallel) name += "sp";
    if (first_layers) name += str_cat("first", *first_layers);
    if (last_layers) name += str_cat("last", *last_layers);
    return name;
  }
};

inline std::string name_of_layout(const ::testing::TestParamInfo<TestLayout>& info) {
  return info.param.text();
}

inline RankGroups groups_of(const TestLayout& layout, dist::World& world, const ModelConfig& config,
                            int64_t part_multiple = 16) {
  RankGroups groups(
      world.everyone(),
      {.tp = layout.tp, .cp = layout.cp, .dp = layout.dp, .pp = layout.pp, .ep = layout.ep},
      layout.sequence_parallel, part_multiple);
  groups.set_stages(config, layout.first_layers, layout.last_layers);
  return groups;
}

/// Sinks, biases, norms and the like are not all the same in a model that was trained.
inline void roughen_vectors(Weights* w) {
  uint64_t tensor = 0;
  for_each_parameter(*w, [&](Parameter& p) {
    ++tensor;
    if (p.kind != ParameterKind::kPlain || p.name == "embed.weight") return;
    for (int64_t i = 0; i < p.numel(); ++i) {
      const uint64_t word = mix64(tensor, static_cast<uint64_t>(i));
      p.master.f32()[i] += 0.5f * (static_cast<float>(word >> 40) * 0x1p-24f - 0.5f);
    }
    p.refresh();
  });
}

/// The tiny recipe's model with six layers, of every kind twice but the hash layer.
inline Weights make_six_layers(uint64_t seed, Precision precision = Precision::kFp32) {
  Json json = read_json_file(source_path("configs/tiny/model.json"));
  json["num_hidden_layers"] = 6;
  json["compress_ratios"] = {0, 4, 16, 4, 0, 16, 0};  // the last one is the MTP block's
  Weights w = make_weights(parse_model_config(json, "six layers"));
  init_random_weights(w, seed);
  roughen_vectors(&w);
  ThreadPool pool(1);
  if (precision != Precision::kFp32) set_precision(base_context(&pool), &w, precision);
  return w;
}

/// What a rank of the layout has of the whole model, in its mode.
inline Weights part_of(const Weights& whole, const Layout& layout) {
  Weights part = shard_weights(whole, layout);
  ThreadPool pool(1);
  set_precision(base_context(&pool), &part, whole.precision());
  return part;
}

inline void expect_all_well(const std::vector<std::string>& errors) {
  for (size_t r = 0; r < errors.size(); ++r) ASSERT_EQ(errors[r], "") << "rank " << r;
}

/// L2 of the difference, relative to a.
inline double relative_difference(const float* a, const float* b, int64_t n) {
  double difference = 0.0, norm = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(a[i]), 2);
  }
  return norm == 0.0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

}  // namespace fathom
