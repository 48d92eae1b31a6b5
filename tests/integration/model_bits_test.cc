// The model's promises on bits: any batch, chunking, fork, thread count and instruction set gives
// the same; gradients do not depend on where micro-batches are cut.
#include <cmath>
#include <cstring>
#include <functional>

#include "fathom/base/error.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/model/forward.h"
#include "fathom/model/sequence_state.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

/// Streams of one sequence, alone, whole, without a state.
Tensor streams_of(const ExecContext& ctx, const Weights& w, const std::vector<int32_t>& ids) {
  Batch batch;
  batch.token_ids = ids;
  batch.segments.push_back({.num_tokens = batch.num_tokens()});
  return forward_layers(ctx, w, batch, embed(ctx, w, batch));
}

void expect_same_rows(const Tensor& got_where, const Tensor& want_where, const std::string& what) {
  const Tensor got = got_where.to_host(), want = want_where.to_host();
  ASSERT_EQ(got.shape(), want.shape()) << what;
  EXPECT_EQ(std::memcmp(got.bytes(), want.bytes(), static_cast<size_t>(want.num_bytes())), 0)
      << what;
}

class ModelBitsTest : public ::testing::TestWithParam<Precision> {};
INSTANTIATE_TEST_SUITE_P(Modes, ModelBitsTest, ::testing::ValuesIn(kAllPrecisions), name_of_mode);

std::vector<std::vector<int32_t>> sequences(const Weights& w) {
  std::vector<std::vector<int32_t>> all;
  // Around the window (16), the ratios (4, 16) and their multiples.
  for (int64_t n : {1, 3, 4, 5, 15, 16, 17, 40, 65}) {
    all.push_back(random_ids(static_cast<uint64_t>(n), n, w.config.vocab_size));
  }
  return all;
}

TEST_P(ModelBitsTest, PackedChunkedAndDecodedRowsAreThoseOfTheSequenceAlone) {
  const Weights w = make_tiny_weights(7, GetParam());
  ThreadPool one(1);
  const ExecContext plain = base_context(&one);
  std::vector<Tensor> want;
  for (const auto& ids : sequences(w)) want.push_back(streams_of(plain, w, ids));

  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const auto all = sequences(w);
    Batch packed;
    for (const auto& ids : all) {
      packed.token_ids.insert(packed.token_ids.end(), ids.begin(), ids.end());
      packed.segments.push_back({.num_tokens = static_cast<int64_t>(ids.size())});
    }
    const Tensor streams = forward_layers(ctx, w, packed, embed(ctx, w, packed));
    int64_t row = 0;
    for (size_t s = 0; s < all.size(); ++s) {
      const auto n = static_cast<int64_t>(all[s].size());
      expect_same_rows(streams.rows(row, row + n), want[s], name + " packed");
      row += n;
    }
    // Several sequences advance together, each in pieces of its own size.
    for (int64_t piece : {1, 3, 7, 16}) {
      std::vector<SequenceState> states(all.size(),
                                        SequenceState(w.config, 16, GetParam(), test_device()));
      bool any = true;
      for (int64_t round = 0; any; ++round) {
        any = false;
        Batch batch;
        std::vector<size_t> who;
        for (size_t s = 0; s < all.size(); ++s) {
          const int64_t done = states[s].num_tokens(), n = static_cast<int64_t>(all[s].size());
          if (done == n) continue;
          any = true;
          const int64_t take = std::min(n - done, piece + static_cast<int64_t>(s) % 2);
          batch.token_ids.insert(batch.token_ids.end(), all[s].begin() + done,
                                 all[s].begin() + done + take);
          batch.segments.push_back({.start_pos = done, .num_tokens = take, .state = &states[s]});
          who.push_back(s);
        }
        if (!any) break;
        const Tensor out = forward_layers(ctx, w, batch, embed(ctx, w, batch));
        int64_t at = 0;
        for (size_t i = 0; i < who.size(); ++i) {
          const Segment& g = batch.segments[i];
          expect_same_rows(out.rows(at, at + g.num_tokens),
                           want[who[i]].rows(g.start_pos, g.start_pos + g.num_tokens),
                           name + " in pieces of " + std::to_string(piece));
          at += g.num_tokens;
        }
      }
    }
  });
}

TEST_P(ModelBitsTest, AForkGoesItsOwnWayAndLeavesTheOtherAlone) {
  const Weights w = make_tiny_weights(7, GetParam());
  ThreadPool pool(2);
  const ExecContext ctx{&pool, detect_cpu_isa(), test_device()};
  const auto prompt = random_ids(1, 22, w.config.vocab_size);
  SequenceState state(w.config, 16, GetParam(), test_device());
  auto feed = [&](SequenceState* s, const std::vector<int32_t>& ids) {
    Batch batch;
    batch.token_ids = ids;
    batch.segments.push_back(
        {.start_pos = s->num_tokens(), .num_tokens = batch.num_tokens(), .state = s});
    return forward_layers(ctx, w, batch, embed(ctx, w, batch));
  };
  feed(&state, prompt);
  const auto left = random_ids(2, 30, w.config.vocab_size),
             right = random_ids(3, 30, w.config.vocab_size);
  SequenceState fork = state;
  for (int64_t t = 0; t < 30; ++t) {  // interleaved, so that shared pages would be seen
    const Tensor a = feed(&state, {left[static_cast<size_t>(t)]});
    const Tensor b = feed(&fork, {right[static_cast<size_t>(t)]});
    for (const auto& [tail, got] : {std::pair{&left, a}, std::pair{&right, b}}) {
      std::vector<int32_t> whole = prompt;
      whole.insert(whole.end(), tail->begin(), tail->begin() + t + 1);
      const Tensor want = streams_of(ctx, w, whole);
      expect_same_rows(got, want.rows(want.dim(0) - 1, want.dim(0)), "token " + std::to_string(t));
    }
  }
}

TEST_P(ModelBitsTest, GradientsDoNotDependOnMicroBatchesThreadsOrInstructionSet) {
  std::vector<SupervisedExample> examples;
  Weights reference = make_tiny_weights(3, GetParam());
  for (int64_t n : {24, 5, 40, 17, 30}) {
    examples.push_back(
        {random_ids(static_cast<uint64_t>(n), n, reference.config.vocab_size), n / 2});
  }
  auto gradients = [&](const ExecContext& ctx, int64_t max_tokens) {
    Weights w = make_tiny_weights(3, GetParam());
    for_each_parameter(w, [](Parameter& p) { p.alloc_grad(); });
    supervised_forward_backward(ctx, w, examples, {.max_tokens_per_micro_batch = max_tokens});
    std::vector<Tensor> grads;
    for_each_parameter(w, [&](const Parameter& p) {
      if (p.grad.defined()) grads.push_back(p.grad);
    });
    return grads;
  };
  ThreadPool one(1);
  const std::vector<Tensor> want = gradients(base_context(&one), 8192);
  ASSERT_GT(want.size(), 50u);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (int64_t max_tokens : {8192, 50, 1}) {
      const std::vector<Tensor> got = gradients(ctx, max_tokens);
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < got.size(); ++i) {
        expect_same_rows(got[i], want[i],
                         name + ", micro-batches of " + std::to_string(max_tokens) + ", gradient " +
                             std::to_string(i));
      }
    }
  });
}

TEST(ModelTest, MtpGradientsAgreeWithCentralDifferences) {
  if (test_device() != nullptr) {
    GTEST_SKIP() << "it moves weights on the host; device_bits_test compares the gradients";
  }
  // The main model is detached: only mtp.* may get a gradient from the MTP loss.
  Weights w = make_tiny_weights(5);
  ThreadPool pool(2);
  const ExecContext ctx{&pool, detect_cpu_isa(), test_device()};
  std::vector<SupervisedExample> examples = {{random_ids(9, 30, w.config.vocab_size), 1}};
  auto mtp_loss = [&] {
    Weights copy = w;  // shares memory, has no gradient buffers of its own below
    for_each_parameter(copy, [](Parameter& p) { p.grad = Tensor(); });
    return supervised_forward_backward(ctx, copy, examples, {.mtp_loss_scaling_factor = 1.0})
        .mtp_loss;
  };
  for_each_parameter(w, [](Parameter& p) {
    if (p.name.starts_with("mtp.")) p.alloc_grad();
  });
  supervised_forward_backward(ctx, w, examples, {.mtp_loss_scaling_factor = 1.0});
  int checked = 0;
  for_each_parameter(w, [&](Parameter& p) {
    if (!p.grad.defined()) return;
    // Along the gradient itself the loss must change by its squared norm.
    double square = 0.0;
    for (int64_t i = 0; i < p.grad.numel(); ++i) {
      square += static_cast<double>(p.grad.f32()[i]) * p.grad.f32()[i];
    }
    if (square < 1e-8) return;
    const double h = 0.02 / std::sqrt(square);
    const Tensor saved = p.master.clone();
    auto moved = [&](double step) {
      for (int64_t i = 0; i < saved.numel(); ++i) {
        p.master.f32()[i] = saved.f32()[i] + static_cast<float>(step * p.grad.f32()[i]);
      }
      return mtp_loss();
    };
    const double slope = (moved(h) - moved(-h)) / (2.0 * h);
    std::memcpy(p.master.f32(), saved.f32(), static_cast<size_t>(saved.num_bytes()));
    // fp32 losses near 4 carry an error of about 1e-6, divided by the step of 0.02.
    EXPECT_NEAR(slope / std::sqrt(square), std::sqrt(square), 0.02 * std::sqrt(square) + 2e-4)
        << p.name;
    ++checked;
  });
  EXPECT_GT(checked, 20);
}

TEST_P(ModelBitsTest, ReplayedRoutesAreUsedAndOwnRoutesReplayToTheSameBits) {
  const Weights w = make_tiny_weights(7, GetParam());
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa(), test_device()};
  const auto ids = random_ids(1, 40, w.config.vocab_size);
  ReplayRecord record{.num_layers = w.config.num_hidden_layers,
                      .num_slots = w.config.num_experts_per_tok,
                      .num_indexer_layers = w.config.num_indexer_layers(),
                      .index_topk = w.config.index_topk};
  Batch batch;
  batch.token_ids = ids;
  batch.segments.push_back({.num_tokens = 40, .replay_out = &record});
  const Tensor want = forward_layers(ctx, w, batch, embed(ctx, w, batch));
  batch.segments[0] = {.num_tokens = 40, .replay_in = &record};
  expect_same_rows(forward_layers(ctx, w, batch, embed(ctx, w, batch)), want, "replayed");
  // Another expert at (token 5, layer 2) changes that token and leaves earlier ones alone.
  int32_t* slot = record.route_row(5, 2);
  slot[0] = (slot[0] + 1) % 8 == slot[1] ? (slot[0] + 2) % 8 : (slot[0] + 1) % 8;
  const Tensor other = forward_layers(ctx, w, batch, embed(ctx, w, batch));
  expect_same_rows(other.rows(0, 5), want.rows(0, 5), "before the change");
  EXPECT_NE(std::memcmp(other.rows(5, 6).to_host().bytes(), want.rows(5, 6).to_host().bytes(),
                        static_cast<size_t>(want.rows(5, 6).num_bytes())),
            0);
}

TEST(ModelTest, ABadBatchNamesItsSegment) {
  const Weights w = make_tiny_weights(7);
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa(), test_device()};
  auto message = [&](const Batch& batch) -> std::string {
    try {
      embed(ctx, w, batch);
    } catch (const UserError& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_NE(message({{1, 2}, {{.num_tokens = 3}}}).find("3 tokens"), std::string::npos);
  EXPECT_NE(message({{64}, {{.num_tokens = 1}}}).find("token id 64"), std::string::npos);
  EXPECT_NE(message({{-1}, {{.num_tokens = 1}}}).find("token id -1"), std::string::npos);
  EXPECT_NE(message({{1}, {{.start_pos = 4, .num_tokens = 1}}}).find("segment 0"),
            std::string::npos);
  Batch too_long;
  too_long.token_ids.assign(1025, 1);
  too_long.segments.push_back({.num_tokens = 1025});
  EXPECT_NE(message(too_long).find("max_position_embeddings"), std::string::npos);
}

}  // namespace
}  // namespace fathom
