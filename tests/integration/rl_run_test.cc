// The loop's promises: rollout and trainer agree bit for bit, a planted fault is seen, and a run
// that is interrupted ends with the bits of one that was not, on other threads and another
// instruction set too.
#include "fathom/rl/rl_run.h"

#include <cmath>
#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/rl/rl_options.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

config::Options small_run() {
  config::Options o;
  o.data.prompt_data = source_path("configs/tiny/data/train.jsonl");
  o.data.input_key = "prompt";
  o.data.label_key = "label";
  o.data.apply_chat_template = true;
  o.data.apply_chat_template_kwargs = "{\"thinking_mode\":\"chat\"}";
  o.data.rollout_shuffle = true;
  o.rollout.num_rollout = 5;
  o.rollout.rollout_batch_size = 3;
  o.rollout.n_samples_per_prompt = 4;
  o.rollout.rollout_temperature = 0.8;
  o.rollout.rollout_max_response_len = 12;
  o.optimizer.lr = 1e-3;
  o.optimizer.lr_decay_style = config::LrDecay::kLinear;
  o.optimizer.weight_decay = 0.1;
  o.reward.rm_type = "math";
  o.algorithm.entropy_coef = 0.01;  // so that groups without a right answer train too
  o.checkpoint.save_interval = 1;
  return o;
}

std::string fresh_directory(const std::string& name) {
  const std::string path = ::testing::TempDir() + "fathom_rl_" + name;
  std::filesystem::remove_all(path);
  return path;
}

class RlRunTest : public ::testing::Test {
 protected:
  RlRunTest() : tokenizer_(Tokenizer::load(source_path("configs/tiny/tokenizer"))) {}

  Weights run(const config::Options& options, const std::string& path, int threads, CpuIsa isa) {
    ThreadPool pool(threads);
    const ExecContext ctx{&pool, isa, test_device()};
    Weights w = make_tiny_weights(11);
    RlRun(ctx, &w, tokenizer_, options, path, Json::object()).run();
    return w;
  }

  Tokenizer tokenizer_;
};

std::vector<double> metric(const std::string& path, const std::string& name) {
  std::vector<double> values;
  const std::string text = read_file(join_path(path, "metrics.jsonl"));
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    const Json line = parse_json(text.substr(begin, end - begin), "metrics");
    if (line.contains(name)) values.push_back(line[name].get<double>());
    begin = end + 1;
  }
  return values;
}

TEST_F(RlRunTest, AnInterruptedRunEndsWithTheBitsOfAnUninterruptedOne) {
  const std::string whole_path = fresh_directory("whole"), cut_path = fresh_directory("cut");
  const Weights whole = run(small_run(), whole_path, 2, detect_cpu_isa());
  EXPECT_FALSE(same_masters(whole, make_tiny_weights(11)));

  config::Options stop_early = small_run();
  stop_early.debug.debug_exit_after_rollout = 2;
  run(stop_early, cut_path, 1, CpuIsa::kAvx2);
  // What a kill would leave: metrics of a step that was not saved.
  const std::string metrics = join_path(cut_path, "metrics.jsonl");
  write_file_atomic(metrics, read_file(metrics) + "{\"step\":2,\"rollout/raw_reward\":9.0}\n{\"st");
  const Weights resumed = run(small_run(), cut_path, 1, CpuIsa::kAvx2);
  EXPECT_TRUE(same_masters(whole, resumed));
  EXPECT_EQ(metric(cut_path, "step"), (std::vector<double>{0, 1, 2, 3, 4}));
  EXPECT_EQ(metric(cut_path, "train/grad_norm"), metric(whole_path, "train/grad_norm"));
  EXPECT_EQ(metric(cut_path, "rollout/raw_reward"), metric(whole_path, "rollout/raw_reward"));
}

class RlRunModesTest : public RlRunTest, public ::testing::WithParamInterface<Precision> {
 protected:
  static config::Precision option() {
    switch (GetParam()) {
      case Precision::kFp32:
        return config::Precision::kFp32;
      case Precision::kParityBf16:
        return config::Precision::kParityBf16;
      case Precision::kParityFp8:
        return config::Precision::kParityFp8;
    }
    return config::Precision::kFast;
  }
};
INSTANTIATE_TEST_SUITE_P(Modes, RlRunModesTest, ::testing::ValuesIn(kAllPrecisions), name_of_mode);

TEST_P(RlRunModesTest, TheLogProbDifferenceIsExactlyZeroInEveryStep) {
  const std::string path = fresh_directory(str_cat("p1_", precision_name(GetParam())));
  config::Options o = small_run();
  o.runtime.precision = option();
  o.rollout.rollout_top_p = 0.9;
  o.train.num_steps_per_rollout = 2;
  o.algorithm.use_rollout_routing_replay = true;
  o.train.max_tokens_per_gpu = 40;
  const Weights w = run(o, path, 2, detect_cpu_isa());
  EXPECT_EQ(w.precision(), GetParam());
  EXPECT_FALSE(same_masters(w, make_tiny_weights(11)));
  const auto difference = metric(path, "train/train_rollout_logprob_abs_diff");
  ASSERT_EQ(difference.size(), 5u);
  for (double d : difference) EXPECT_EQ(d, 0.0);
}

TEST_F(RlRunTest, ModesLearnDifferentBitsAndFastDiffersBetweenRolloutAndTrainer) {
  const auto run_in = [&](const std::string& name, const auto& set_options) {
    config::Options o = small_run();
    o.rollout.num_rollout = 3;
    set_options(&o);
    const std::string path = fresh_directory(name);
    const Weights w = run(o, path, 2, detect_cpu_isa());
    return std::pair(metric(path, "train/train_rollout_logprob_abs_diff"), w);
  };
  using config::Options;
  const auto fp8 =
      run_in("m8", [](Options* o) { o->runtime.precision = config::Precision::kParityFp8; });
  const auto bf16 =
      run_in("m16", [](Options* o) { o->launch.train_fp8 = o->launch.rollout_fp8 = false; });
  EXPECT_EQ(bf16.second.precision(), Precision::kParityBf16);
  EXPECT_FALSE(same_masters(fp8.second, bf16.second));
  // The trainer in FP8, rollout in BF16 and the other way round: never equal, never far apart.
  for (const bool train_fp8 : {true, false}) {
    const auto fast = run_in("fast", [&](Options* o) {
      o->launch.train_fp8 = train_fp8;
      o->launch.rollout_fp8 = !train_fp8;
      o->algorithm.use_rollout_routing_replay = true;
    });
    EXPECT_EQ(fast.second.precision(), train_fp8 ? Precision::kParityFp8 : Precision::kParityBf16);
    for (const double d : fast.first) {
      EXPECT_GT(d, 1e-4);
      EXPECT_LT(d, 0.3);
    }
  }
}

TEST_P(RlRunModesTest, APlantedFaultMakesTheLogProbDifferenceNonZero) {
  ThreadPool pool(2);
  const ExecContext ctx{&pool, detect_cpu_isa(), test_device()};
  Weights w = make_tiny_weights(11, GetParam());
  const config::Options o = small_run();
  const auto prompts = read_prompt_file(o, *o.data.prompt_data, tokenizer_, false).prompts;
  PromptCursor cursor(static_cast<int64_t>(prompts.size()), true, 1);
  RolloutCollector collector(prompts, &cursor, collector_options(o));
  Engine engine(ctx, w, {});
  const RolloutResult rollout = collector.collect(&engine);
  std::vector<TrainSample> samples;
  for (const auto& group : rollout.groups) {
    for (const Sample& s : group) samples.push_back({&s, 1.0});
  }
  for_each_parameter(w, [](Parameter& p) { p.alloc_grad(); });
  const PolicyStepOptions options = policy_step_options(o);
  EXPECT_EQ(policy_forward_backward(ctx, w, samples, 12.0, options).train_rollout_logprob_abs_diff,
            0.0);
  // A part that rounds otherwise than the engine did.
  if (GetParam() != Precision::kFp32) {
    w.layers[1].ffn.rounding = Rounding();
    EXPECT_NE(
        policy_forward_backward(ctx, w, samples, 12.0, options).train_rollout_logprob_abs_diff,
        0.0);
    w.layers[1].ffn.rounding = Rounding(GetParam());
    EXPECT_EQ(
        policy_forward_backward(ctx, w, samples, 12.0, options).train_rollout_logprob_abs_diff,
        0.0);
  }
  // One step, in its format, of one weight that every token passes.
  Tensor& faulty = w.layers[1].attn.wo_b.compute;
  const Tensor on_host = faulty.clone().to_host();
  float* weight = on_host.f32();
  switch (GetParam()) {
    case Precision::kFp32:
      *weight = std::nextafter(*weight, 1e9f);
      break;
    case Precision::kParityBf16:
      *weight *= 1 + 0x1p-7f;
      break;
    case Precision::kParityFp8:
      *weight *= 1 + 0x1p-3f;
      break;
  }
  faulty = on_host.copy_to(test_device());
  EXPECT_NE(policy_forward_backward(ctx, w, samples, 12.0, options).train_rollout_logprob_abs_diff,
            0.0);
}

TEST_F(RlRunTest, OverSamplingKeepsTheOrderOfSubmissionWhateverTheEngineRunsAtOnce) {
  ThreadPool pool(2);
  const ExecContext ctx{&pool, detect_cpu_isa(), test_device()};
  Weights w = make_tiny_weights(11);
  config::Options o = small_run();
  o.rollout.over_sampling_batch_size = 7;
  const auto prompts = read_prompt_file(o, *o.data.prompt_data, tokenizer_, false).prompts;
  std::vector<std::vector<int64_t>> indices;
  for (int64_t running : {1, 5, 64}) {
    PromptCursor cursor(static_cast<int64_t>(prompts.size()), true, 1);
    RolloutCollector collector(prompts, &cursor, collector_options(o));
    Engine engine(ctx, w, {.max_running_requests = running});
    std::vector<int64_t> seen;
    for (int i = 0; i < 2; ++i) {
      for (const auto& group : collector.collect(&engine).groups) {
        for (const Sample& s : group) seen.push_back(s.index);
      }
      engine.set_weight_version(i + 1);
    }
    indices.push_back(seen);
  }
  EXPECT_EQ(indices[0].front(), 0);
  EXPECT_EQ(indices[0][12], 28);  // 7 groups of 4 were submitted by then
  EXPECT_EQ(indices[0], indices[1]);
  EXPECT_EQ(indices[0], indices[2]);
}

TEST_F(RlRunTest, SpeculationAndLittleMemoryChangeNoBitOfTraining) {
  const Weights plain = run(small_run(), fresh_directory("plain"), 2, detect_cpu_isa());
  const std::string path = fresh_directory("speculative");
  config::Options o = small_run();
  o.launch.enable_mtp = true;
  o.engine.state_memory_bytes = 120000;  // about three answers at a time
  o.engine.max_running_requests = 6;
  o.algorithm.use_rollout_routing_replay = true;
  EXPECT_TRUE(same_masters(plain, run(o, path, 2, detect_cpu_isa())));
  for (double d : metric(path, "train/train_rollout_logprob_abs_diff")) EXPECT_EQ(d, 0.0);
  EXPECT_EQ(metric(path, "rollout/spec_accept_rate").size(), 5u);
  for (double bytes : metric(path, "perf/state_bytes_released")) {
    EXPECT_GT(bytes, 0.0);
    EXPECT_LE(bytes, 120000.0);
  }
}

TEST_F(RlRunTest, ASecondProcessOnTheSameDirectoryIsRefused) {
  const std::string path = fresh_directory("lock");
  const RunDirectory first(path);
  try {
    RunDirectory second(path);
    FAIL();
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find("another process"), std::string::npos);
  }
}

TEST_F(RlRunTest, ABatchThatDoesNotDivideIsAConfigError) {
  config::Options o = small_run();
  o.train.global_batch_size = 5;
  EXPECT_THROW(steps_per_rollout(o), ConfigError);
  o.train.global_batch_size = 6;
  EXPECT_EQ(steps_per_rollout(o), 2);
}

}  // namespace
}  // namespace fathom
