// Ranks that share the rows of one batch: log-probs, routes and picks with the bits of one rank,
// gradients within the bound of docs/numerics.md.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "fathom/dist/local_ranks.h"
#include "fathom/model/forward.h"
#include "tests/multirank/layouts.h"

namespace fathom {
namespace {

constexpr double kGradientBound = 1e-5;  // L2 of the difference, relative to the tensor

/// A batch of whole sequences; every row is predicted but each third.
struct Case {
  Batch batch;
  std::vector<int32_t> next_ids;  // [T]
  std::vector<int64_t> rows;
  std::vector<int32_t> targets;
  std::vector<float> dlog_probs;
};

Case make_case(const std::vector<int64_t>& lengths, int64_t vocab) {
  Case result;
  for (size_t s = 0; s < lengths.size(); ++s) {
    const std::vector<int32_t> ids = random_ids(100 + s, lengths[s] + 1, vocab);
    result.batch.segments.push_back({.start_pos = 0, .num_tokens = lengths[s]});
    for (int64_t i = 0; i < lengths[s]; ++i) {
      const int64_t row = static_cast<int64_t>(result.next_ids.size());
      result.batch.token_ids.push_back(ids[static_cast<size_t>(i)]);
      result.next_ids.push_back(ids[static_cast<size_t>(i) + 1]);
      if (row % 3 == 1) continue;
      result.rows.push_back(row);
      result.targets.push_back(result.next_ids.back());
      result.dlog_probs.push_back(0.01f * static_cast<float>(1 + row % 7));
    }
  }
  return result;
}

struct Outcome {
  std::vector<float> log_probs, mtp_log_probs;
  std::vector<ReplayRecord> records;
  std::map<std::string, std::vector<float>> gradients;  // of this batch and those before it
};

/// The head's part of one pass over the streams: log-probs, gradient of the streams.
template <typename Collapse, typename CollapseBackward>
Tensor run_head(const ExecContext& ctx, Weights& w, const Case& c, Collapse&& to_hidden,
                CollapseBackward&& backward, std::vector<float>* log_probs_of) {
  const Tensor hidden = to_hidden(c.rows);
  const Tensor log_prob = log_probs(ctx, w, hidden, c.targets, 0.9f);
  log_probs_of->assign(log_prob.f32(), log_prob.f32() + log_prob.numel());
  return backward(
      c.rows, log_probs_backward(ctx, w, hidden, c.targets, 0.9f, c.dlog_probs.data(), nullptr));
}

Outcome run(const ExecContext& ctx, Weights& w, const Case& given) {
  Outcome out;
  Case c = given;
  const ModelConfig& config = w.config;
  for (size_t s = 0; s < c.batch.segments.size(); ++s) {
    out.records.push_back({.num_layers = config.num_hidden_layers,
                           .num_slots = config.num_experts_per_tok,
                           .num_indexer_layers = config.num_indexer_layers(),
                           .index_topk = config.index_topk});
  }
  for (size_t s = 0; s < out.records.size(); ++s) {
    c.batch.segments[s].replay_out = &out.records[s];
  }
  Tape tape, mtp_tape;
  const Tensor streams = forward_layers(ctx, w, c.batch, embed(ctx, w, c.batch), &tape);
  const Tensor dstreams = run_head(
      ctx, w, c, [&](const auto& rows) { return collapse(ctx, w, c.batch, streams, rows); },
      [&](const auto& rows, const Tensor& dhidden) {
        return collapse_backward(ctx, w, c.batch, streams, rows, dhidden);
      },
      &out.log_probs);
  embed_backward(ctx, w, c.batch, backward_layers(ctx, w, c.batch, tape, dstreams));

  const Tensor draft = mtp(ctx, w, c.batch, streams, c.next_ids, &mtp_tape);
  const Tensor ddraft = run_head(
      ctx, w, c, [&](const auto& rows) { return mtp_collapse(ctx, w, c.batch, draft, rows); },
      [&](const auto& rows, const Tensor& dhidden) {
        Tensor d;
        mtp_collapse_backward(ctx, w, c.batch, draft, rows, dhidden, &d);
        return d;
      },
      &out.mtp_log_probs);
  mtp_backward(ctx, w, c.batch, streams, c.next_ids, mtp_tape, ddraft);

  for_each_parameter(w, [&](Parameter& p) {
    if (!p.grad.defined()) return;
    std::vector<float>& sum = out.gradients[p.name];
    sum.assign(p.grad.f32(), p.grad.f32() + p.grad.numel());
    w.layout.cp.sum(sum.data(), p.grad.numel());
  });
  return out;
}

using Lengths = std::vector<int64_t>;  // of the sequences of a batch

/// A fresh model, or one whose vectors are rough as after training: gradients of hc_*_scale are few
/// numbers, and differences of nearly equal sums in the one or the other for some batches.
enum class Vectors { kFresh, kRough };

/// @return by rank, then by batch.
std::vector<std::vector<Outcome>> run_on(int cp, Precision precision, Vectors vectors,
                                         const std::vector<Lengths>& batches) {
  std::vector<std::vector<Outcome>> outcomes(static_cast<size_t>(cp));
  const auto errors = dist::run_local_ranks(cp, [&](dist::World& world) {
    ThreadPool pool(1);
    const ExecContext ctx = {&pool, detect_cpu_isa()};
    Weights w = make_tiny_weights(3);
    if (vectors == Vectors::kRough) roughen_vectors(&w);
    set_precision(ctx, &w, precision);
    w.layout.cp = world.everyone();
    for_each_parameter(w, [](Parameter& p) { p.alloc_grad(); });
    for (const Lengths& lengths : batches) {
      outcomes[static_cast<size_t>(world.rank())].push_back(
          run(ctx, w, make_case(lengths, w.config.vocab_size)));
    }
  });
  for (size_t r = 0; r < errors.size(); ++r) EXPECT_EQ(errors[r], "") << "rank " << r;
  return outcomes;
}

void expect_same(const Outcome& one, const Outcome& rank) {
  EXPECT_EQ(rank.log_probs, one.log_probs);
  EXPECT_EQ(rank.mtp_log_probs, one.mtp_log_probs);
  ASSERT_EQ(rank.records.size(), one.records.size());
  for (size_t s = 0; s < one.records.size(); ++s) {
    EXPECT_EQ(rank.records[s].routes, one.records[s].routes) << "sequence " << s;
    EXPECT_EQ(rank.records[s].picks, one.records[s].picks) << "sequence " << s;
  }
}

void expect_close_gradients(const Outcome& one, const Outcome& rank) {
  ASSERT_EQ(rank.gradients.size(), one.gradients.size());
  for (const auto& [name, gradient] : one.gradients) {
    const float* other = rank.gradients.at(name).data();
    const auto n = static_cast<int64_t>(gradient.size());
    EXPECT_LE(relative_difference(gradient.data(), other, n), kGradientBound) << name;
  }
}

void expect_like_one_rank(Precision precision, Vectors vectors, const std::vector<Lengths>& batches,
                          int cp) {
  const std::vector<Outcome> one = run_on(1, precision, vectors, batches)[0];
  for (const std::vector<Outcome>& rank : run_on(cp, precision, vectors, batches)) {
    ASSERT_EQ(rank.size(), batches.size());
    for (size_t b = 0; b < batches.size(); ++b) {
      SCOPED_TRACE(str_cat("batch ", b, " on ", cp, " ranks"));
      expect_same(one[b], rank[b]);
    }
    SCOPED_TRACE(str_cat("on ", cp, " ranks"));
    expect_close_gradients(one.back(), rank.back());
  }
}

class Modes : public ::testing::TestWithParam<Precision> {};
INSTANTIATE_TEST_SUITE_P(ContextParallel, Modes, ::testing::ValuesIn(kAllPrecisions), name_of_mode);

TEST_P(Modes, TwoRanks) {
  expect_like_one_rank(GetParam(), Vectors::kRough, {{37, 1, 90, 5, 18}}, 2);
}
TEST_P(Modes, FourRanks) {
  expect_like_one_rank(GetParam(), Vectors::kRough, {{37, 1, 90, 5, 18}, {131}}, 4);
}

TEST(ContextParallel, EntriesOverSeveralBorders) {
  // Contexts shorter than a window of the larger ratio, and some without any row.
  expect_like_one_rank(Precision::kFp32, Vectors::kFresh,
                       {{18}, {33}, {2}, {1, 1, 1}, {1}, {3, 1, 40}}, 4);
}

TEST(ContextParallel, EveryLength) {
  std::vector<Lengths> batches;
  for (int64_t n = 1; n <= 41; ++n) batches.push_back({n});
  expect_like_one_rank(Precision::kFp32, Vectors::kFresh, batches, 3);
}

}  // namespace
}  // namespace fathom
