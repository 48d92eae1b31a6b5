// Stages, contexts and ranks that share the samples: the bits of one rank forward, its gradients,
// its losses over three steps, and its answers to what was replayed.
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "fathom/train/optimizer.h"
#include "fathom/train/policy_step.h"
#include "fathom/train/score.h"
#include "tests/multirank/layouts.h"

namespace fathom {
namespace {

constexpr double kGradientBound = 1e-5;  // L2 of the difference, relative to the tensor

std::vector<std::vector<int32_t>> some_sequences(int64_t vocab) {
  std::vector<std::vector<int32_t>> sequences;
  for (int64_t n : {37, 5, 90, 1, 61, 18, 44}) {
    sequences.push_back(random_ids(static_cast<uint64_t>(n), n, vocab));
  }
  return sequences;
}

/// Runs body(ctx, weights, ranks) on every rank of the layout.
template <typename Body>
void on_ranks(const TestLayout& layout, const Weights& whole, const Body& body) {
  expect_all_well(dist::run_local_ranks(layout.num_ranks(), [&](dist::World& world) {
    ThreadPool pool(1);
    const ExecContext ctx = {&pool, detect_cpu_isa()};
    const RankGroups ranks = groups_of(layout, world, whole.config,
                                       whole.precision() == Precision::kParityFp8 ? 128 : 16);
    Weights w = part_of(whole, ranks.layout);
    body(ctx, w, ranks);
  }));
}

/// What rank 0 has of score(), by name.
std::map<std::string, Tensor> score_on(const TestLayout& layout, const Weights& whole) {
  std::map<std::string, Tensor> result;
  on_ranks(layout, whole, [&](const ExecContext& ctx, Weights& w, const RankGroups& ranks) {
    const NamedTensors tensors = score(
        ctx, w, some_sequences(w.config.vocab_size),
        {.with_logits = true, .with_gradients = true, .with_mtp = true, .chunk_tokens = 29}, ranks);
    if (ranks.everyone.rank() == 0) result = {tensors.begin(), tensors.end()};
  });
  return result;
}

class Layouts : public ::testing::TestWithParam<TestLayout> {};
INSTANTIATE_TEST_SUITE_P(
    Pipeline, Layouts,
    ::testing::Values(TestLayout{.pp = 2}, TestLayout{.pp = 4, .first_layers = 1, .last_layers = 1},
                      TestLayout{.cp = 2}, TestLayout{.cp = 4},
                      TestLayout{.pp = 3, .first_layers = 1, .last_layers = 1},
                      TestLayout{.pp = 2, .last_layers = 1}, TestLayout{.pp = 6},
                      TestLayout{.pp = 2, .cp = 2}, TestLayout{.pp = 2, .dp = 2},
                      TestLayout{.cp = 2, .dp = 2}, TestLayout{.pp = 2, .cp = 2, .dp = 2},
                      TestLayout{.pp = 2, .tp = 2}, TestLayout{.pp = 2, .dp = 2, .ep = 2},
                      TestLayout{.cp = 2, .tp = 2, .sequence_parallel = true},
                      TestLayout{.pp = 2, .cp = 2, .tp = 2, .ep = 2},
                      TestLayout{.pp = 2, .cp = 2, .tp = 2, .ep = 4, .sequence_parallel = true}),
    name_of_layout);

TEST_P(Layouts, ScoreIsThatOfOneRank) {
  for (const Precision precision : kAllPrecisions) {
    const Weights whole = make_six_layers(3, precision);
    const std::map<std::string, Tensor> one = score_on({}, whole),
                                        many = score_on(GetParam(), whole);
    const bool sums_are_cut = GetParam().num_ranks() > GetParam().pp;
    ASSERT_EQ(many.size(), one.size());
    for (const auto& [name, tensor] : one) {
      ASSERT_TRUE(many.contains(name)) << name;
      const Tensor& other = many.at(name);
      ASSERT_EQ(other.shape(), tensor.shape()) << name;
      if (name.starts_with("grad.") && sums_are_cut) {
        EXPECT_LE(relative_difference(tensor.f32(), other.f32(), tensor.numel()), kGradientBound)
            << name << " in " << precision_name(precision);
      } else {
        EXPECT_EQ(
            std::memcmp(tensor.bytes(), other.bytes(), static_cast<size_t>(tensor.num_bytes())), 0)
            << name << " in " << precision_name(precision);
      }
    }
  }
}

/// Losses and norms of three steps, and the masters behind them by name.
struct Trained {
  std::vector<double> losses, norms;
  std::map<std::string, Tensor> masters;
};

Trained train_on(const TestLayout& layout, const Weights& whole) {
  Trained result;
  std::mutex mutex;
  on_ranks(layout, whole, [&](const ExecContext& ctx, Weights& w, const RankGroups& ranks) {
    Optimizer optimizer(
        w, {}, [](const Parameter&) { return true; }, ranks);
    std::vector<SupervisedExample> examples;
    for (const auto& ids : some_sequences(w.config.vocab_size)) {
      if (ids.size() >= 2) examples.push_back({ids, 1});
    }
    for (int step = 0; step < 3; ++step) {
      const SupervisedMetrics m =
          supervised_forward_backward(ctx, w, examples, {.max_tokens_per_micro_batch = 50}, ranks);
      const double norm = optimizer.step(ctx, 1e-3);
      const std::lock_guard lock(mutex);
      if (ranks.everyone.rank() == 0) {
        result.losses.push_back(m.loss);
        result.losses.push_back(m.mtp_loss);
        result.norms.push_back(norm);
      }
    }
    const std::lock_guard lock(mutex);
    for_each_parameter(w, [&](Parameter& p) {
      const std::string part = p.is_sharded() ? str_cat(p.name, " from ", p.shard_begin) : p.name;
      const auto [it, is_new] = result.masters.emplace(part, p.master);
      if (is_new) return;
      EXPECT_EQ(std::memcmp(it->second.bytes(), p.master.bytes(),
                            static_cast<size_t>(p.master.num_bytes())),
                0)
          << p.name << " differs between ranks";
    });
  });
  return result;
}

TEST_P(Layouts, ThreeStepsAreThoseOfOneRank) {
  const Weights whole = make_six_layers(5);
  const Trained one = train_on({}, whole), many = train_on(GetParam(), whole);
  if (GetParam().num_ranks() == GetParam().pp) {
    ASSERT_EQ(many.masters.size(), one.masters.size());
    EXPECT_EQ(many.losses, one.losses);
    EXPECT_EQ(many.norms, one.norms);
    for (const auto& [name, master] : one.masters) {
      EXPECT_EQ(std::memcmp(master.bytes(), many.masters.at(name).bytes(),
                            static_cast<size_t>(master.num_bytes())),
                0)
          << name;
    }
    return;
  }
  ASSERT_EQ(many.losses.size(), one.losses.size());
  EXPECT_EQ(many.losses[0], one.losses[0]);  // before any update
  EXPECT_EQ(many.losses[1], one.losses[1]);
  for (size_t i = 0; i < one.losses.size(); ++i) {
    EXPECT_NEAR(many.losses[i], one.losses[i], 1e-5 * std::abs(one.losses[i])) << i;
  }
  for (size_t i = 0; i < one.norms.size(); ++i) {
    EXPECT_NEAR(many.norms[i], one.norms[i], 1e-4 * one.norms[i]) << i;
  }
}

}  // namespace
}  // namespace fathom
