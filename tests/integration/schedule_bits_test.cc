// Promise P1 on the real model: random schedules of a micro V4 with every part give each request
// the tokens and log-probs that it gets alone, and that the trainer computes. Speculation changes
// nothing. A kernel whose order of summation depends on the batch is found out.
// FATHOM_TEST_SCHEDULES=n runs n schedules instead of a few, FATHOM_TEST_FIRST_SCHEDULE=i from the
// i-th on, FATHOM_TEST_SIDE_BY_SIDE=k runs k at a time (on a device each on a stream of its own).
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "fathom/base/device.h"
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
  /// @param version of the weights in place; the subject's alone
  ScheduleSubject subject(const ExecContext& ctx, int64_t* version) {
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
    s.make_engine = [this, &ctx, version](const EngineOptions& options) {
      return std::make_unique<Engine>(
          ctx, even_.config, std::make_unique<TwoModels>(ctx, even_, odd_, version), options);
    };
    s.set_weights = [version](int64_t v) { *version = v; };
    return s;
  }

  /// Log-probs against the trainer's forward of the whole sequence, where nothing changed the
  /// logits. @return how many were compared.
  int64_t expect_trainer_agrees(const ExecContext& ctx, const ScheduleResult& result) {
    int64_t num_checks = 0;
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
      EXPECT_EQ(std::memcmp(scored[0].data(), c.log_probs.data(), c.log_probs.size() * 4), 0)
          << "request " << c.request_id << " sample " << c.sample;
      ++num_checks;
    }
    return num_checks;
  }

  /// What some schedules came to.
  struct Tally {
    EngineCounters counters;
    int64_t num_answers = 0, num_trainer_checks = 0;
    void add(const EngineCounters& c) {
      counters.num_preemptions += c.num_preemptions;
      counters.num_drafted += c.num_drafted;
      counters.num_accepted += c.num_accepted;
      counters.prefix_cache.num_hits += c.prefix_cache.num_hits;
      counters.prefix_cache.num_evictions += c.prefix_cache.num_evictions;
    }
  };

  /// Schedules begin, begin + step, ... below end, until something fails.
  Tally run_schedules(Device* device, int64_t begin, int64_t end, int64_t step) {
    Tally tally;
    ThreadPool one(1), two(2);
    int64_t version = 0;
    for (int64_t seed = begin; seed < end && !HasFailure(); seed += step) {
      SCOPED_TRACE(str_cat("schedule ", seed));
      const ExecContext ctx{seed % 2 == 0 ? &one : &two,
                            seed % 3 == 0 ? CpuIsa::kAvx2 : detect_cpu_isa(), device};
      const ScheduleSubject s = subject(ctx, &version);
      const ScheduleResult result = run_schedule(s, static_cast<uint64_t>(seed), 7);
      EXPECT_EQ(check_against_alone(s, result), "");
      tally.num_trainer_checks += expect_trainer_agrees(ctx, result);
      tally.num_answers += static_cast<int64_t>(result.done.size());
      tally.add(result.counters);
    }
    return tally;
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
  ThreadPool two_{2};
};

INSTANTIATE_TEST_SUITE_P(Modes, ScheduleBitsTest, ::testing::ValuesIn(kAllPrecisions),
                         name_of_mode);

TEST_P(ScheduleBitsTest, EveryAnswerIsThatOfTheRequestAloneAndOfTheTrainer) {
  const int64_t n = number_from("FATHOM_TEST_SCHEDULES", 300);
  const int64_t first = number_from("FATHOM_TEST_FIRST_SCHEDULE", 0);
  const int64_t side_by_side = number_from("FATHOM_TEST_SIDE_BY_SIDE", 1);
  std::vector<Tally> tallies(static_cast<size_t>(side_by_side));
  if (side_by_side == 1) {
    tallies[0] = run_schedules(test_device(), first, first + n, 1);
  } else {
    if (test_device() != nullptr) test_device()->synchronize();  // the weights are there
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < side_by_side; ++i) {
      threads.emplace_back([&, i] {
        const auto device = test_device() != nullptr ? open_cuda_device() : nullptr;
        tallies[static_cast<size_t>(i)] =
            run_schedules(device.get(), first + i, first + n, side_by_side);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  ASSERT_FALSE(HasFailure());
  Tally total;
  for (const Tally& t : tallies) {
    total.add(t.counters);
    total.num_answers += t.num_answers;
    total.num_trainer_checks += t.num_trainer_checks;
  }
  const EngineCounters& c = total.counters;
  std::printf(
      "%ld schedules, %ld answers (%ld against the trainer), %ld preemptions, %ld prefix "
      "hits, %ld evictions, %ld of %ld drafts right\n",
      n, total.num_answers, total.num_trainer_checks, c.num_preemptions, c.prefix_cache.num_hits,
      c.prefix_cache.num_evictions, c.num_accepted, c.num_drafted);
  EXPECT_GT(c.num_preemptions, 0);
  EXPECT_GT(c.prefix_cache.num_hits, 0);
  EXPECT_GT(c.prefix_cache.num_evictions, 0);
  EXPECT_GT(total.num_trainer_checks, n);
}

TEST_P(ScheduleBitsTest, AnOrderOfSummationThatDependsOnTheBatchIsFoundOut) {
  const ExecContext ctx{&two_, detect_cpu_isa(), test_device()};
  ScheduleSubject s = subject(ctx, &version_);
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
  ScheduleSubject s = subject(ctx, &version_);
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
