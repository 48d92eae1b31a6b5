// The loop on several ranks, which share the samples or the model as well: the same answers as on
// one, P1 exactly 0, the same weights everywhere, and checkpoints that go on in other layouts.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "fathom/base/file.h"
#include "fathom/dist/local_ranks.h"
#include "fathom/rl/rl_run.h"
#include "tests/multirank/layouts.h"

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
  o.rollout.num_rollout = 4;
  o.rollout.rollout_batch_size = 3;
  o.rollout.over_sampling_batch_size = 4;
  o.rollout.n_samples_per_prompt = 4;
  o.rollout.rollout_temperature = 0.8;
  o.rollout.rollout_max_response_len = 12;
  o.optimizer.lr = 1e-3;
  o.reward.rm_type = "math";
  o.algorithm.entropy_coef = 0.01;  // so that groups without a right answer train too
  o.algorithm.use_rollout_routing_replay = true;
  o.checkpoint.save_interval = 1;
  o.eval.eval_interval = 2;
  o.eval.eval_prompt_data = {"digits", source_path("configs/tiny/data/train.jsonl@[0:5]")};
  return o;
}

std::string fresh_directory(const std::string& name) {
  const std::string path = ::testing::TempDir() + "fathom_rl_ranks_" + name;
  std::filesystem::remove_all(path);
  return path;
}

/// The weights of each rank at the end.
std::vector<Weights> run_on(int num_ranks, const config::Options& options,
                            const std::string& path) {
  const Tokenizer tokenizer = Tokenizer::load(source_path("configs/tiny/tokenizer"));
  std::vector<Weights> weights(static_cast<size_t>(num_ranks));
  const auto errors = dist::run_local_ranks(num_ranks, [&](dist::World& world) {
    ThreadPool pool(1);
    const ExecContext ctx{&pool, detect_cpu_isa()};
    Weights& w = weights[static_cast<size_t>(world.rank())];
    w = make_tiny_weights(11);
    RlRun(ctx, &w, tokenizer, options, path, Json::object(), world.everyone()).run();
  });
  for (size_t r = 0; r < errors.size(); ++r) EXPECT_EQ(errors[r], "") << "rank " << r;
  for (const Weights& w : weights) EXPECT_TRUE(same_masters(w, weights[0]));
  return weights;
}

/// The same with the model shared by the ranks of a layout.
void run_in(const TestLayout& layout, const config::Options& options, const std::string& path) {
  const Tokenizer tokenizer = Tokenizer::load(source_path("configs/tiny/tokenizer"));
  const Weights whole = make_tiny_weights(11);
  expect_all_well(dist::run_local_ranks(layout.num_ranks(), [&](dist::World& world) {
    ThreadPool pool(1);
    const ExecContext ctx{&pool, detect_cpu_isa()};
    const RankGroups groups = groups_of(layout, world, whole.config);
    Weights w = part_of(whole, groups.layout);
    config::Options with_layout = options;  // what the engine's layout follows from
    with_layout.parallel.pipeline_model_parallel_size = layout.pp;
    RlRun(ctx, &w, tokenizer, with_layout, path, Json::object(), groups).run();
  }));
}

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

TEST(RlRanks, SameAnswersAndNoDifferenceOfLogProbs) {
  const std::string one = fresh_directory("one");
  const std::vector<Weights> alone = run_on(1, small_run(), one);
  EXPECT_FALSE(same_masters(alone[0], make_tiny_weights(11)));
  for (int num_ranks : {2, 3}) {
    const std::string many = fresh_directory(str_cat(num_ranks));
    config::Options options = small_run();
    options.debug.trace_rollouts = 2;
    run_on(num_ranks, options, many);
    const Json trace = parse_json(read_file(join_path(many, "trace.json")), "trace.json");
    std::map<std::string, int> rollouts, sums;  // by rank
    for (const Json& event : trace.at("traceEvents")) {
      const std::string rank = event.at("pid").dump();
      if (event.at("name") == "rollout") ++rollouts[rank];
      if (event.at("name") == "sum to owners") ++sums[rank];
    }
    EXPECT_EQ(rollouts.size(), static_cast<size_t>(num_ranks));
    for (const auto& [rank, count] : rollouts) EXPECT_EQ(count, 2) << "rank " << rank;
    EXPECT_EQ(sums.size(), static_cast<size_t>(num_ranks)) << "gradients were summed";
    const auto difference = metric(many, "train/train_rollout_logprob_abs_diff");
    EXPECT_EQ(difference, (std::vector<double>(4, 0.0)));
    // Before the first update everything has the bits of one rank; the gradient its value.
    for (const char* name :
         {"rollout/raw_reward", "rollout/response_lengths", "rollout/rollout_log_probs",
          "rollout/num_submitted_groups", "train/loss", "train/entropy_loss", "eval/digits"}) {
      const auto a = metric(one, name), b = metric(many, name);
      ASSERT_EQ(a.size(), b.size()) << name;
      ASSERT_FALSE(a.empty()) << name;
      EXPECT_EQ(a[0], b[0]) << name << " on " << num_ranks << " ranks";
    }
    const double norm = metric(one, "train/grad_norm")[0];
    EXPECT_NEAR(metric(many, "train/grad_norm")[0], norm, 1e-5 * norm);
  }
}

TEST(RlRanks, ARunGoesOnWithAnotherNumberOfRanks) {
  const std::string whole = fresh_directory("whole"), cut = fresh_directory("cut");
  const std::vector<Weights> uninterrupted = run_on(2, small_run(), whole);
  config::Options stop_early = small_run();
  stop_early.debug.debug_exit_after_rollout = 2;
  run_on(2, stop_early, cut);
  const std::string copies[] = {fresh_directory("cut1"), fresh_directory("cut3")};
  for (const std::string& copy : copies) {
    std::filesystem::copy(cut, copy, std::filesystem::copy_options::recursive);
  }
  // With the same number of ranks: the bits of a run that was not interrupted.
  EXPECT_TRUE(same_masters(run_on(2, small_run(), cut)[0], uninterrupted[0]));
  EXPECT_EQ(metric(cut, "train/grad_norm"), metric(whole, "train/grad_norm"));
  // With others: the same answers in the first step behind the checkpoint, and P1 stays 0.
  run_on(1, small_run(), copies[0]);
  run_on(3, small_run(), copies[1]);
  for (const std::string& copy : copies) {
    EXPECT_EQ(metric(copy, "step").size(), metric(whole, "step").size());
    EXPECT_EQ(metric(copy, "rollout/rollout_log_probs")[2],
              metric(whole, "rollout/rollout_log_probs")[2]);
    EXPECT_EQ(metric(copy, "train/loss")[2], metric(whole, "train/loss")[2]);
    EXPECT_EQ(metric(copy, "train/train_rollout_logprob_abs_diff"), (std::vector<double>(4, 0.0)));
  }
}

const TestLayout kShared[] = {{.tp = 2},
                              {.tp = 2, .ep = 2, .sequence_parallel = true},
                              {.dp = 2, .ep = 2},
                              {.dp = 2, .tp = 2, .ep = 4},
                              {.cp = 2, .tp = 2, .sequence_parallel = true},
                              {.pp = 2},
                              {.pp = 2, .dp = 2},
                              {.pp = 2, .tp = 2}};

TEST(RlRanks, AModelThatIsSharedGivesTheSameAnswers) {
  const std::string one = fresh_directory("alone");
  run_on(1, small_run(), one);
  for (const TestLayout& layout : kShared) {
    SCOPED_TRACE(layout.text());
    const std::string many = fresh_directory(layout.text());
    run_in(layout, small_run(), many);
    EXPECT_EQ(metric(many, "train/train_rollout_logprob_abs_diff"), (std::vector<double>(4, 0.0)));
    for (const char* name :
         {"rollout/raw_reward", "rollout/response_lengths", "rollout/rollout_log_probs",
          "rollout/num_submitted_groups", "train/loss", "train/entropy_loss", "eval/digits"}) {
      const auto a = metric(one, name), b = metric(many, name);
      ASSERT_EQ(a.size(), b.size()) << name;
      ASSERT_FALSE(a.empty()) << name;
      EXPECT_EQ(a[0], b[0]) << name;
    }
    const double norm = metric(one, "train/grad_norm")[0];
    EXPECT_NEAR(metric(many, "train/grad_norm")[0], norm, 1e-5 * norm);
  }
}

TEST(RlRanks, ARunGoesOnInAnotherLayout) {
  const TestLayout layout = {.dp = 2, .tp = 2, .ep = 2, .sequence_parallel = true};
  const std::string whole = fresh_directory("whole_layout"), cut = fresh_directory("cut_layout");
  run_in(layout, small_run(), whole);
  config::Options stop_early = small_run();
  stop_early.debug.debug_exit_after_rollout = 2;
  run_in(layout, stop_early, cut);
  const std::string copies[] = {fresh_directory("cut_one"), fresh_directory("cut_ep")};
  for (const std::string& copy : copies) {
    std::filesystem::copy(cut, copy, std::filesystem::copy_options::recursive);
  }
  run_in(layout, small_run(), cut);
  EXPECT_EQ(metric(cut, "train/grad_norm"), metric(whole, "train/grad_norm"));
  run_on(1, small_run(), copies[0]);
  run_in({.dp = 2, .ep = 2}, small_run(), copies[1]);
  for (const std::string& copy : copies) {
    EXPECT_EQ(metric(copy, "rollout/rollout_log_probs")[2],
              metric(whole, "rollout/rollout_log_probs")[2]);
    EXPECT_EQ(metric(copy, "train/loss")[2], metric(whole, "train/loss")[2]);
    EXPECT_EQ(metric(copy, "train/train_rollout_logprob_abs_diff"), (std::vector<double>(4, 0.0)));
  }
}

TEST(RlRanks, StagesChangeNoBitsAndARunGoesOnWithOthers) {
  const std::string whole = fresh_directory("layout_whole"), cut = fresh_directory("layout_cut");
  run_on(1, small_run(), whole);
  config::Options stop_early = small_run();
  stop_early.debug.debug_exit_after_rollout = 2;
  run_in({.pp = 2}, stop_early, cut);
  // Stages change no bits: one rank goes on to the weights that it would have had alone.
  const std::string stages = fresh_directory("layout_stages");
  std::filesystem::copy(cut, stages, std::filesystem::copy_options::recursive);
  run_on(1, small_run(), cut);
  run_in({.pp = 3}, small_run(), stages);
  for (const char* name : {"train/loss", "train/grad_norm", "rollout/rollout_log_probs"}) {
    EXPECT_EQ(metric(cut, name), metric(whole, name)) << name;
    EXPECT_EQ(metric(stages, name), metric(whole, name)) << name;
  }
}

}  // namespace
}  // namespace fathom
