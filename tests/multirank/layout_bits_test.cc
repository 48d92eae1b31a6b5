// One model over several ranks: forward bits of one rank in every mode, gradients within the bound
// of docs/numerics.md, the same for MTP, and steps of the optimizer that stay together. A new
// layout is one line below.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <mutex>

#include "fathom/base/hash.h"
#include "fathom/dist/local_ranks.h"
#include "fathom/parallel/model_parts.h"
#include "fathom/parallel/shard_rules.h"
#include "fathom/train/optimizer.h"
#include "fathom/train/score.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

constexpr double kGradientBound = 1e-5;  // L2 of the difference, relative to the tensor

/// Which model: the tiny recipe's, some of whose products are too narrow to be divided, or one
/// whose contractions are at least 1,024 wide, so that 8 ranks divide every product in every mode.
enum class Model { kTiny, kWide };

struct Case {
  const char* name;
  dist::MeshShape mesh;
  bool sequence_parallel;
  Model model = Model::kTiny;
};

ModelConfig config_of(Model model) {
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

/// Sinks, biases, norms and the like are not all the same in a model that was trained.
void roughen_vectors(Weights* w) {
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

/// The whole model, made once.
const Weights& whole_model(Model model) {
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

std::vector<std::vector<int32_t>> some_sequences(Model model) {
  const std::vector<int64_t> lengths = model == Model::kTiny
                                           ? std::vector<int64_t>{37, 5, 61, 1, 18, 44}
                                           : std::vector<int64_t>{13, 22};
  std::vector<std::vector<int32_t>> sequences;
  for (int64_t n : lengths) {
    sequences.push_back(random_ids(static_cast<uint64_t>(n), n, config_of(model).vocab_size));
  }
  return sequences;
}

using Tensors = std::map<std::string, Tensor>;

/// This rank's groups and its part of the model, in the mode.
struct RankModel {
  RankGroups groups;
  Weights weights;
};

RankModel make_rank_model(const ExecContext& ctx, dist::World& world, const Case& c,
                          Precision precision) {
  RankModel rank;
  rank.groups = RankGroups(world.everyone(), c.mesh, c.sequence_parallel,
                           precision == Precision::kParityFp8 ? 128 : 16);
  rank.weights = shard_weights(whole_model(c.model), rank.groups.layout);
  set_precision(ctx, &rank.weights, precision);
  return rank;
}

void run_ranks(const Case& c, const std::function<void(const ExecContext&, dist::World&)>& body) {
  const std::vector<std::string> errors =
      dist::run_local_ranks(c.mesh.size(), [&](dist::World& world) {
        ThreadPool pool(1);
        body({&pool, detect_cpu_isa()}, world);
      });
  for (size_t r = 0; r < errors.size(); ++r) ASSERT_EQ(errors[r], "") << "rank " << r;
}

Tensors score_on(const Case& c, Precision precision) {
  Tensors result;
  run_ranks(c, [&](const ExecContext& ctx, dist::World& world) {
    RankModel rank = make_rank_model(ctx, world, c, precision);
    const NamedTensors tensors = score(ctx, rank.weights, some_sequences(c.model),
                                       {.with_logits = true,
                                        .with_gradients = true,
                                        .with_mtp = !rank.weights.mtp.empty(),
                                        .chunk_tokens = 24},
                                       rank.groups);
    if (world.rank() == 0) result = {tensors.begin(), tensors.end()};
  });
  return result;
}

const Tensors& score_of_one(Model model, Precision precision) {
  static std::map<std::pair<Model, Precision>, Tensors> results;
  Tensors& result = results[{model, precision}];
  if (result.empty()) result = score_on({"One", {}, false, model}, precision);
  return result;
}

double relative_difference(const Tensor& a, const Tensor& b) {
  double difference = 0.0, norm = 0.0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    difference += std::pow(static_cast<double>(a.f32()[i]) - b.f32()[i], 2);
    norm += std::pow(static_cast<double>(a.f32()[i]), 2);
  }
  return norm == 0.0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

std::string hash_of(const Tensor& t) {
  return sha256_hex(std::string_view(reinterpret_cast<const char*>(t.bytes()),
                                     static_cast<size_t>(t.num_bytes())));
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return std::memcmp(a.bytes(), b.bytes(), static_cast<size_t>(a.num_bytes())) == 0;
}

const Case kLayouts[] = {
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
    {"WideTp2", {.tp = 2}, false, Model::kWide},
    {"WideTp4SpEtp2", {.tp = 4, .etp = 2}, true, Model::kWide},
    {"WideTp8", {.tp = 8}, false, Model::kWide},
    {"WideTp8SpEp2Etp4", {.tp = 8, .ep = 2, .etp = 4}, true, Model::kWide},
};

constexpr int kNumTiny = 15;  // the tiny ones stand first

class Layouts : public ::testing::TestWithParam<std::tuple<Case, Precision>> {};

std::string name_of_layout(const ::testing::TestParamInfo<Layouts::ParamType>& info) {
  std::string mode = precision_name(std::get<1>(info.param));
  std::erase(mode, '-');
  return std::get<0>(info.param).name + ("_" + mode);
}

INSTANTIATE_TEST_SUITE_P(All, Layouts,
                         ::testing::Combine(::testing::ValuesIn(kLayouts),
                                            ::testing::ValuesIn(kAllPrecisions)),
                         name_of_layout);

TEST_P(Layouts, ForwardHasTheBitsOfOneRankAndGradientsItsValues) {
  const auto& [layout, precision] = GetParam();
  const Tensors& one = score_of_one(layout.model, precision);
  const Tensors many = score_on(layout, precision);
  ASSERT_EQ(many.size(), one.size());
  double worst = 0.0;
  int num_equal = 0, num_gradients = 0;
  for (const auto& [name, tensor] : one) {
    ASSERT_TRUE(many.contains(name)) << name;
    const Tensor& other = many.at(name);
    ASSERT_EQ(other.shape(), tensor.shape()) << name;
    if (name.starts_with("grad.")) {
      const double difference = relative_difference(tensor, other);
      worst = std::max(worst, difference);
      EXPECT_LE(difference, kGradientBound) << name;
      ++num_gradients;
      num_equal += same_bits(tensor, other);
    } else {
      EXPECT_TRUE(same_bits(tensor, other)) << name;
    }
  }
  RecordProperty("worst_gradient_difference", str_cat(worst));
  RecordProperty("gradients_with_equal_bits", str_cat(num_equal, " of ", num_gradients));
}

/// The model's rules and those that plan, checkpoints and conversions ask are the same.
TEST(Shards, AreThoseOfTheShardRules) {
  for (const Case& c : kLayouts) {
    for (const Precision precision : {Precision::kFp32, Precision::kParityFp8}) {
      const ModelConfig config = config_of(c.model);
      run_ranks(c, [&](const ExecContext&, dist::World& world) {
        const RankGroups groups(world.everyone(), c.mesh, c.sequence_parallel,
                                precision == Precision::kParityFp8 ? 128 : 16);
        const Weights mine = make_weights(config, true, groups.layout);
        std::map<std::string, const Parameter*> by_name;
        for_each_parameter(mine, [&](const Parameter& p) { by_name[p.name] = &p; });
        const ShardLayout layout{.mesh = groups.shape, .precision = precision};
        const Weights whole = make_weights(config);
        for_each_parameter(whole, [&](const Parameter& p) {
          const Shard shard = shard_of(config, layout, world.rank(), p.name, p.shape);
          FATHOM_ASSERT(shard.held == by_name.contains(p.name), p.name);
          if (!shard.held) return;
          const Parameter& held = *by_name.at(p.name);
          FATHOM_ASSERT(held.shape == shard.shape(p.shape) && held.is_sharded() == !shard.whole(),
                        p.name, shape_to_string(held.shape));
          FATHOM_ASSERT(
              shard.whole() || (held.shard_axis == shard.axis && held.shard_begin == shard.begin),
              p.name);
          FATHOM_ASSERT((shard.replica == 0) == groups.is_first_replica(held), p.name);
        });
      });
    }
  }
}

TEST(Shards, AreDrawnAsOneRankWouldDrawThem) {
  Weights whole = make_weights(config_of(Model::kTiny));
  init_random_weights(whole, 11);
  run_ranks(kLayouts[13], [&](const ExecContext&, dist::World& world) {
    const RankGroups groups(world.everyone(), kLayouts[13].mesh, true, 16);
    Weights drawn = make_weights(whole.config, true, groups.layout);
    init_random_weights(drawn, 11);
    FATHOM_ASSERT(same_masters(drawn, shard_weights(whole, groups.layout)));
    const Weights together = gather_weights(groups, drawn);
    FATHOM_ASSERT(world.rank() != 0 || same_masters(together, whole));
  });
}

/// Three steps of the optimizer, with the MTP block.
struct Trained {
  std::vector<double> losses, norms;
  std::string masters;  // hash of the whole model's
};

Trained train_on(const Case& c) {
  Trained result;
  run_ranks(c, [&](const ExecContext& ctx, dist::World& world) {
    RankModel rank = make_rank_model(ctx, world, c, Precision::kFp32);
    Optimizer optimizer(
        rank.weights, {}, [](const Parameter&) { return true; }, rank.groups);
    std::vector<SupervisedExample> examples;
    for (const auto& ids : some_sequences(c.model)) {
      if (ids.size() >= 2) examples.push_back({ids, 1});
    }
    for (int step = 0; step < 3; ++step) {
      const SupervisedMetrics m = supervised_forward_backward(
          ctx, rank.weights, examples, {.max_tokens_per_micro_batch = 64}, rank.groups);
      const double norm = optimizer.step(ctx, 1e-3);
      if (world.rank() != 0) continue;
      result.losses.insert(result.losses.end(), {m.loss, m.mtp_loss});
      result.norms.push_back(norm);
    }
    // Ranks that have the same part have the same bits.
    for_each_parameter(rank.weights, [&](Parameter& p) {
      const dist::Group& replicas = rank.groups.replicas(p);
      for (const std::string& hash : replicas.all_gather(hash_of(p.master))) {
        FATHOM_ASSERT(hash == hash_of(p.master), p.name);
      }
      if (p.is_sharded() || is_routed_expert(p)) return;
      for (const std::string& hash : rank.groups.layout.tp.all_gather(hash_of(p.master))) {
        FATHOM_ASSERT(hash == hash_of(p.master), p.name);
      }
    });
    std::string bytes;
    const Weights whole = gather_weights(rank.groups, rank.weights);
    for_each_parameter(whole, [&](const Parameter& p) {
      if (p.master.defined()) bytes += hash_of(p.master);
    });
    if (world.rank() == 0) result.masters = sha256_hex(bytes);
  });
  return result;
}

class Steps : public ::testing::TestWithParam<Case> {};
std::string name_of_case(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Tiny, Steps, ::testing::ValuesIn(kLayouts, kLayouts + kNumTiny),
                         name_of_case);

TEST_P(Steps, StayTogetherAndNearOneRank) {
  static const Trained one = train_on({"One", {}, false});
  const Trained many = train_on(GetParam()), again = train_on(GetParam());
  EXPECT_EQ(many.masters, again.masters) << "another run has other bits";
  ASSERT_EQ(many.losses.size(), one.losses.size());
  EXPECT_EQ(many.losses[0], one.losses[0]);  // before any update: bit-equal
  EXPECT_EQ(many.losses[1], one.losses[1]);
  for (size_t i = 0; i < one.losses.size(); ++i) {
    EXPECT_NEAR(many.losses[i], one.losses[i], 1e-5 * std::abs(one.losses[i])) << i;
  }
  EXPECT_NEAR(many.norms[0], one.norms[0], 1e-6 * one.norms[0]);
}

}  // namespace
}  // namespace fathom
