// Promise P1 on the real model: random schedules of a micro V4 with every part give each request
// the tokens and log-probs that it gets alone, and that the trainer computes. Speculation changes
// nothing. A kernel whose order of summation depends on the batch is found out.
// FATHOM_TEST_SCHEDULES=n runs n schedules instead of a few, FATHOM_TEST_FIRST_SCHEDULE=i from the
// i-th on.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "fathom/model/forward.h"
#include "fathom/rollout/random_schedule.h"
#include "fathom/train/policy_step.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

constexpr int64_t kVocab = 32;

int64_t number_from(const char* variable, int64_t usual) {
  const char* given = std::getenv(variable);
  return given == nullptr ? usual : std::atoll(given);
}

/// Every part of a V4: hash and biased routing, ratios 0, 4 and 8, an indexer that has to choose,
/// MTP.
ModelConfig micro_config() {
  const std::string path = source_path("configs/tiny/model.json");
  ModelConfig c = parse_model_config(read_json_file(path), path);
  c.vocab_size = kVocab;
  c.hidden_size = 64;
  c.num_attention_heads = 4;
  c.head_dim = 32;
  c.qk_rope_head_dim = 16;
  c.q_lora_rank = 32;
  c.o_groups = 2;
  c.o_lora_rank = 16;
  c.sliding_window = 8;
  c.compress_ratios = {0, 4, 8, 0};
  c.index_n_heads = 2;
  c.index_head_dim = 16;
  c.index_topk = 3;
  c.n_routed_experts = 4;
  c.moe_intermediate_size = 32;
  c.max_position_embeddings = 160;
  return c;
}

Weights micro_weights(uint64_t seed, Precision precision) {
  Weights w = make_weights(micro_config());
  init_random_weights(w, seed);
  ThreadPool pool(1);
  move_weights(base_context(&pool), &w);
  set_precision(base_context(&pool), &w, precision);
  return w;
}

/// One of two models, chosen from outside.
class TwoModels : public StepModel {
 public:
  TwoModels(const ExecContext& ctx, const Weights& even, const Weights& odd, const int64_t* version)
      : models_{{WeightsModel(ctx, even), WeightsModel(ctx, odd)}}, version_(version) {}
  Tensor step(const Batch& batch, const std::vector<int64_t>& rows) override {
    return now().step(batch, rows);
  }
  Precision precision() const override { return models_[0].precision(); }
  bool can_draft() const override { return true; }
  Tensor draft(std::span<DraftSequence* const> s) override { return now().draft(s); }
  void end_draft(std::span<DraftSequence> s) override { now().end_draft(s); }

 private:
  WeightsModel& now() { return models_[static_cast<size_t>(*version_ % 2)]; }
  std::array<WeightsModel, 2> models_;
  const int64_t* version_;
};

/// The head's product in one chain or, for batches of an odd number of tokens, in two halves.
class FaultyModel : public StepModel {
 public:
  FaultyModel(const ExecContext& ctx, const Weights& w) : ctx_(ctx), w_(w) {}
  Precision precision() const override { return w_.precision(); }
  Tensor step(const Batch& batch, const std::vector<int64_t>& rows) override {
    const Tensor streams = forward_layers(ctx_, w_, batch, embed(ctx_, w_, batch));
    if (rows.empty()) return Tensor();
    const Tensor on_device = collapse(ctx_, w_, streams, rows);
    if (batch.num_tokens() % 2 == 0) return logits(ctx_, w_, on_device);
    const Tensor hidden = on_device.to_host();
    const int64_t D = w_.config.hidden_size;
    std::vector<float> head(static_cast<size_t>(kVocab * D));
    w_.head.load_row_major(w_.head.compute, head.data());
    Tensor z = Tensor::empty({hidden.dim(0), kVocab});
    for (int64_t r = 0; r < hidden.dim(0); ++r) {
      for (int64_t v = 0; v < kVocab; ++v) {
        float half[2] = {0.0f, 0.0f};
        for (int64_t d = 0; d < D; ++d) {
          float& sum = half[d >= D / 2];
          sum = std::fma(hidden.f32()[r * D + d], head[static_cast<size_t>(v * D + d)], sum);
        }
        z.f32()[r * kVocab + v] = half[0] + half[1];
      }
    }
    return z;
  }

 private:
  ExecContext ctx_;
  const Weights& w_;
};

/// One expert sublayer that does not round in batches of an odd number of tokens.
class FaultyRoundingModel : public StepModel {
 public:
  FaultyRoundingModel(const ExecContext& ctx, const Weights& w)
      : even_(ctx, w), odd_(ctx, faulty_) {
    faulty_ = w;
    faulty_.layers[1].ffn.rounding = Rounding();
  }
  Tensor step(const Batch& batch, const std::vector<int64_t>& rows) override {
    return (batch.num_tokens() % 2 == 0 ? even_ : odd_).step(batch, rows);
  }
  Precision precision() const override { return even_.precision(); }

 private:
  Weights faulty_;
  WeightsModel even_, odd_;
};

class ScheduleBitsTest : public ::testing::TestWithParam<Precision> {
 protected:
  ScheduleSubject subject(const ExecContext& ctx) {
    ScheduleSubject s;
    s.config = even_.config;
    s.page_multiple = 8;
    s.max_prompt = 60;
    s.max_new = 25;
    s.can_draft = true;
    s.append_token = [](int32_t id, std::string* text) {
      *text += static_cast<char>('a' + id % 5);
      *text += static_cast<char>('a' + id / 8);
    };
    s.make_engine = [this, &ctx](const EngineOptions& options) {
      return std::make_unique<Engine>(
          ctx, even_.config, std::make_unique<TwoModels>(ctx, even_, odd_, &version_), options);
    };
    s.set_weights = [this](int64_t version) { version_ = version; };
    return s;
  }

  /// Log-probs against the trainer's forward of the whole sequence, where nothing changed the
  /// logits.
  void expect_trainer_agrees(const ExecContext& ctx, const ScheduleResult& result) {
    for (const Completion& c : result.done) {
      const Request& q = result.requests[static_cast<size_t>(c.request_id)];
      const SamplingParams& p = q.sampling;
      const bool adjusted = p.frequency_penalty != 0.0f || p.presence_penalty != 0.0f ||
                            p.repetition_penalty != 1.0f || !p.logit_bias.empty() ||
                            p.min_new_tokens > 0;
      if (adjusted || c.token_ids.empty() || !c.weight_versions.empty()) continue;
      Sample sample;
      sample.tokens = q.prompt_ids;
      sample.tokens.insert(sample.tokens.end(), c.token_ids.begin(), c.token_ids.end());
      sample.response_length = static_cast<int64_t>(c.token_ids.size());
      const double temperature = p.temperature == 0.0f ? 1.0 : static_cast<double>(p.temperature);
      const Weights& w = c.weight_version % 2 == 0 ? even_ : odd_;
      const auto scored = score_samples(ctx, w, {&sample}, temperature);
      ASSERT_EQ(std::memcmp(scored[0].data(), c.log_probs.data(), c.log_probs.size() * 4), 0)
          << "request " << c.request_id << " sample " << c.sample;
      ++num_trainer_checks_;
    }
  }

  /// A schedule among the first 100 shows that the subject depends on it.
  static void expect_found(const ScheduleSubject& s) {
    std::string found;
    uint64_t seed = 0;
    for (; seed < 100 && found.empty(); ++seed) {
      found = check_against_alone(s, run_schedule(s, seed, 3));
    }
    EXPECT_NE(found, "") << "100 schedules did not notice";
    std::printf("found by schedule %ld: %s\n", static_cast<long>(seed - 1), found.c_str());
  }

  const Weights even_ = micro_weights(21, GetParam()), odd_ = micro_weights(22, GetParam());
  int64_t version_ = 0;
  int64_t num_trainer_checks_ = 0;
  ThreadPool one_{1}, two_{2};
};

INSTANTIATE_TEST_SUITE_P(Modes, ScheduleBitsTest, ::testing::ValuesIn(kAllPrecisions),
                         name_of_mode);

TEST_P(ScheduleBitsTest, EveryAnswerIsThatOfTheRequestAloneAndOfTheTrainer) {
  const int64_t n = number_from("FATHOM_TEST_SCHEDULES", 300);
  const int64_t first = number_from("FATHOM_TEST_FIRST_SCHEDULE", 0);
  EngineCounters total;
  int64_t num_answers = 0;
  for (int64_t seed = first; seed < first + n; ++seed) {
    SCOPED_TRACE(str_cat("schedule ", seed));
    const ExecContext ctx{seed % 2 == 0 ? &one_ : &two_,
                          seed % 3 == 0 ? CpuIsa::kAvx2 : detect_cpu_isa(), test_device()};
    const ScheduleSubject s = subject(ctx);
    const ScheduleResult result = run_schedule(s, static_cast<uint64_t>(seed), 7);
    ASSERT_EQ(check_against_alone(s, result), "");
    expect_trainer_agrees(ctx, result);
    ASSERT_FALSE(HasFailure());
    num_answers += static_cast<int64_t>(result.done.size());
    total.num_preemptions += result.counters.num_preemptions;
    total.num_drafted += result.counters.num_drafted;
    total.num_accepted += result.counters.num_accepted;
    total.prefix_cache.num_hits += result.counters.prefix_cache.num_hits;
    total.prefix_cache.num_evictions += result.counters.prefix_cache.num_evictions;
  }
  std::printf(
      "%ld schedules, %ld answers (%ld against the trainer), %ld preemptions, %ld prefix "
      "hits, %ld evictions, %ld of %ld drafts right\n",
      n, num_answers, num_trainer_checks_, total.num_preemptions, total.prefix_cache.num_hits,
      total.prefix_cache.num_evictions, total.num_accepted, total.num_drafted);
  EXPECT_GT(total.num_preemptions, 0);
  EXPECT_GT(total.prefix_cache.num_hits, 0);
  EXPECT_GT(total.prefix_cache.num_evictions, 0);
  EXPECT_GT(num_trainer_checks_, n);
}

TEST_P(ScheduleBitsTest, AnOrderOfSummationThatDependsOnTheBatchIsFoundOut) {
  const ExecContext ctx{&two_, detect_cpu_isa(), test_device()};
  ScheduleSubject s = subject(ctx);
  s.can_draft = false;
  s.set_weights = nullptr;
  s.make_engine = [&](const EngineOptions& options) {
    return std::make_unique<Engine>(ctx, even_.config, std::make_unique<FaultyModel>(ctx, even_),
                                    options);
  };
  expect_found(s);
}

TEST_P(ScheduleBitsTest, ARoundingThatDependsOnTheBatchIsFoundOut) {
  if (GetParam() == Precision::kFp32) GTEST_SKIP() << "fp32 rounds nothing";
  const ExecContext ctx{&two_, detect_cpu_isa(), test_device()};
  ScheduleSubject s = subject(ctx);
  s.can_draft = false;
  s.set_weights = nullptr;
  s.make_engine = [&](const EngineOptions& options) {
    return std::make_unique<Engine>(ctx, even_.config,
                                    std::make_unique<FaultyRoundingModel>(ctx, even_), options);
  };
  expect_found(s);
}

}  // namespace
}  // namespace fathom
