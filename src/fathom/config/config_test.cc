#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "fathom/base/error.h"
#include "fathom/config/derived.h"
#include "fathom/config/parse.h"
#include "fathom/config/table.h"
#include "fathom/config/words.h"

namespace fathom::config {
namespace {

using Words = std::vector<std::string>;

/// A train command line that has nothing wrong.
ParsedCommand parse(Words args, Environment environment = {}, Command command = Command::kTrain) {
  return parse_command_line(command, args, environment);
}

/// The message of the ConfigError that parsing must end with.
std::string error_of(Words args, Environment environment = {}, Command command = Command::kTrain) {
  try {
    parse_command_line(command, args, environment);
  } catch (const ConfigError& e) {
    return e.what();
  }
  ADD_FAILURE() << "no ConfigError";
  return "";
}

::testing::AssertionResult has(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "no \"" << part << "\" in:\n" << text;
}

class RecipeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = ::testing::TempDir() + "/config_test_" +
                 ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string recipe(const std::string& text) {
    const std::string path = directory_ + "/recipe.json";
    std::ofstream(path) << text;
    return path;
  }
  std::string directory_;
};

TEST(SplitWordsTest, QuotesAndBackslashesAreThoseOfAShell) {
  EXPECT_EQ(split_words("  --lr 1e-5\t--x='a b' "), (Words{"--lr", "1e-5", "--x=a b"}));
  EXPECT_EQ(split_words(R"("a \"b\" \\ \n" c\ d '' "")"), (Words{R"(a "b" \ \n)", "c d", "", ""}));
  EXPECT_TRUE(split_words(" \n ").empty());
  EXPECT_THROW(split_words("'a"), ConfigError);
  EXPECT_THROW(split_words("\"a"), ConfigError);
  EXPECT_THROW(split_words("a\\"), ConfigError);
}

TEST(NearestWordTest, CountsSwapsAsOneAndGivesUpWhenNothingIsNear) {
  EXPECT_EQ(nearest_word("saev", {"load", "save"}), "save");
  EXPECT_EQ(nearest_word("rollout-batchsize", {"rollout-seed", "rollout-batch-size"}),
            "rollout-batch-size");
  EXPECT_EQ(nearest_word("xyzzy", {"load", "save"}), "");
}

TEST_F(RecipeTest, CommandLineBeatsEnvironmentBeatsRecipeBeatsPresetBeatsDefault) {
  const std::string path = recipe(R"({"lr": 1e-4, "n-samples-per-prompt": 4, "adam_beta1": 0.8})");
  const ParsedCommand p = parse(
      {"--config", path, "--lr", "1e-2"},
      {{"MILES_SCRIPT_LR", "1e-3"}, {"MILES_SCRIPT_N_SAMPLES_PER_PROMPT", "2"}, {"HOME", "/root"}});
  EXPECT_EQ(p.options.optimizer.lr, 1e-2);
  EXPECT_EQ(p.option("lr").source, Source::kCommandLine);
  EXPECT_EQ(p.options.rollout.n_samples_per_prompt, 2);
  EXPECT_EQ(p.option("n-samples-per-prompt").source, Source::kEnvironment);
  EXPECT_EQ(p.option("n-samples-per-prompt").origin, "MILES_SCRIPT_N_SAMPLES_PER_PROMPT");
  EXPECT_EQ(p.options.optimizer.adam_beta1, 0.8);
  EXPECT_EQ(p.option("adam-beta1").source, Source::kRecipe);
  EXPECT_EQ(p.options.optimizer.adam_beta2, 0.98);
  EXPECT_EQ(p.option("adam-beta2").source, Source::kPreset);
  EXPECT_EQ(p.options.optimizer.adam_eps, 1e-8);
  EXPECT_EQ(p.option("adam-eps").source, Source::kDefault);
  EXPECT_TRUE(p.is_given("adam-beta1"));
  EXPECT_FALSE(p.is_given("adam-beta2"));
}

TEST_F(RecipeTest, ExtraArgsBeatEverythingAndTheLastOneWins) {
  const ParsedCommand p =
      parse({"--extra-args", "--lr 1e-3 --rollout-stop 'a b' c --lr=1e-4", "--lr", "1e-2"},
            {{"MILES_SCRIPT_LR", "1e-1"}});
  EXPECT_EQ(p.options.optimizer.lr, 1e-4);
  EXPECT_EQ(p.option("lr").source, Source::kExtraArgs);
  EXPECT_EQ(p.options.rollout.rollout_stop, (Words{"a b", "c"}));
  // They may come from a recipe, too.
  const std::string path = recipe(R"({"extra-args": "--lr 0.5"})");
  EXPECT_EQ(parse({"--config", path, "--lr", "0.25"}).options.optimizer.lr, 0.5);
  EXPECT_TRUE(has(error_of({"--extra-args", "--lr 'x"}), "--extra-args: a single quote"));
  EXPECT_TRUE(has(error_of({"--extra-args", "--config x"}), "--config cannot be in --extra-args"));
}

TEST(ParseTest, EverythingWrongIsReportedAtOnce) {
  const std::string message =
      error_of({"--lrr", "1", "--lr", "fast", "--eps-clip", "1.5", "--task", "gsm9k",
                "--sglang-tp-size", "8", "stray", "--min-lr", "1"},
               {{"MILES_SCRIPT_SEEED", "3"}, {"MILES_SCRIPT_NUM_ROLLOUT", "-1"}});
  EXPECT_TRUE(has(message, "fathom train: 8 problems"));
  EXPECT_TRUE(has(message, "unknown option --lrr; did you mean --lr?"));
  EXPECT_TRUE(has(message, "--lr must be a number, got 'fast'"));
  EXPECT_TRUE(has(message, "--eps-clip must be at least 0, below 1, got '1.5'"));
  EXPECT_TRUE(has(message, "--task must be one of dapo_aime gsm8k digit_sum; did you mean gsm8k?"));
  EXPECT_TRUE(has(message, "--sglang-tp-size 8: An engine over several ranks is not built yet"));
  EXPECT_TRUE(has(message, "'stray' stands alone"));
  EXPECT_TRUE(has(message, "MILES_SCRIPT_SEEED; did you mean MILES_SCRIPT_SEED?"));
  EXPECT_TRUE(has(message, "MILES_SCRIPT_NUM_ROLLOUT must be at least 0, got '-1'"));
  // --min-lr above --lr is not complained of: --lr itself is wrong.
  EXPECT_FALSE(has(message, "--min-lr"));
}

TEST(ParseTest, ValuesComeWithAndWithoutAnEqualsSign) {
  const ParsedCommand p =
      parse({"--lr=1e-3", "--seed", "7", "--rollout-top-k", "-1", "--skip-saving",
             "--no-enable-eval", "--rollout-shuffle=false", "--eval-prompt-data", "a", "a.jsonl",
             "b", "b.jsonl", "--rollout-stop-token-ids", "1", "2", "--run-id=x=y"});
  EXPECT_EQ(p.options.optimizer.lr, 1e-3);
  EXPECT_EQ(p.options.train.seed, 7);
  EXPECT_EQ(p.options.rollout.rollout_top_k, -1);
  EXPECT_TRUE(p.options.launch.skip_saving);
  EXPECT_FALSE(p.options.launch.enable_eval);
  EXPECT_FALSE(p.options.data.rollout_shuffle);
  EXPECT_EQ(p.options.eval.eval_prompt_data, (Words{"a", "a.jsonl", "b", "b.jsonl"}));
  EXPECT_EQ(p.options.rollout.rollout_stop_token_ids, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(p.options.launch.run_id, "x=y");
  EXPECT_TRUE(has(error_of({"--lr", "--seed", "7"}), "--lr needs a value"));
  EXPECT_TRUE(has(error_of({"--no-skip-saving=1"}), "--no-skip-saving takes no value"));
  EXPECT_TRUE(has(error_of({"--seed", "99999999999999999999"}), "does not fit 64 bits"));
  EXPECT_TRUE(has(error_of({"--seed", "1.5"}), "--seed must be a whole number, got '1.5'"));
  EXPECT_TRUE(has(error_of({"--lr", "nan"}), "--lr must be a number"));
}

TEST(ParseTest, TheSameOptionTwiceIsAnError) {
  EXPECT_TRUE(
      has(error_of({"--lr", "1", "--lr", "2"}), "--lr is given twice; the first time as '1'"));
  EXPECT_TRUE(
      has(error_of({"--sglang-tp-size", "1", "--tp-size", "1"}), "--tp-size is given twice"));
  EXPECT_TRUE(
      has(error_of({"--skip-saving", "--no-skip-saving"}), "--no-skip-saving is given twice"));
}

TEST(ParseTest, ARepeatableOptionCollectsItsValues) {
  const ParsedCommand p = parse({"--hf-checkpoint", "m", "--input", "i", "--output", "o", "--stop",
                                 "x", "--stop=--", "--stop", "y z"},
                                {}, Command::kGenerate);
  EXPECT_EQ(p.options.tool.stop, (Words{"x", "--", "y z"}));
  EXPECT_EQ(p.options.train.seed, 0);
}

TEST(ParseTest, EngineFlagsAreKnownWithAndWithoutTheirPrefix) {
  EXPECT_EQ(parse({"--sglang-max-running-requests", "3"}).options.engine.max_running_requests, 3);
  EXPECT_EQ(parse({"--max-running-requests", "4"}).options.engine.max_running_requests, 4);
  EXPECT_EQ(parse({}, {{"MILES_SCRIPT_PAGE_SIZE", "16"}}).options.engine.page_size, 16);
  EXPECT_EQ(parse({}, {{"MILES_SCRIPT_SGLANG_PAGE_SIZE", "32"}}).options.engine.page_size, 32);
}

TEST(ParseTest, AnOptionOfAnotherSubcommandSaysWhose) {
  EXPECT_TRUE(has(error_of({"--with-logits"}),
                  "--with-logits is not an option of this subcommand, but of: score"));
}

TEST(ParseTest, MissingOptionsAreNamed) {
  const std::string message = error_of({}, {}, Command::kScore);
  EXPECT_TRUE(has(message, "--hf-checkpoint is missing"));
  EXPECT_TRUE(has(message, "--input is missing"));
  EXPECT_TRUE(has(message, "--output is missing"));
}

TEST(ParseTest, HelpIsNeverRefused) {
  EXPECT_TRUE(parse({"--lrr", "--help"}).help);
  for (const CommandInfo& info : all_commands()) {
    const std::string help = help_text(info.command);
    EXPECT_TRUE(has(help, "Usage: fathom " + info.name));
    EXPECT_TRUE(has(help, "[env var: MILES_SCRIPT_THREADS]"));
    Options options;
    const OptionTable table(info.command, options);
    for (const Option& row : table.rows()) {
      EXPECT_TRUE(has(help, "--" + row.name)) << info.name;
      EXPECT_TRUE(row.is_unbuilt() || !row.help.empty()) << row.name;
      EXPECT_TRUE(!row.is_unbuilt() || !row.refusal.empty()) << row.name;
    }
  }
  EXPECT_TRUE(has(help_text(Command::kTrain), "--eps-clip FLOAT"));
  EXPECT_TRUE(has(help_text(Command::kTrain), "(default 0.2; at least 0, below 1)"));
}

TEST(ParseTest, InspectTakesOnePathOrTwo) {
  const auto complaint = [](const std::vector<std::string>& args) {
    return error_of(args, {}, Command::kInspect);
  };
  EXPECT_EQ(parse({"--diff", "a", "b"}, {}, Command::kInspect).options.tool.diff.size(), 2u);
  EXPECT_EQ(parse({"a", "--diff", "b"}, {}, Command::kInspect).options.tool.path, "a");
  EXPECT_TRUE(has(complaint({}), "--path is missing"));
  EXPECT_TRUE(has(complaint({"--diff", "a"}), "compares two paths, got 1"));
  EXPECT_TRUE(has(complaint({"a", "--diff", "b", "c"}), "compares two paths, got 3"));
  EXPECT_TRUE(has(complaint({"--diff", "a", "b", "--verify"}), "two jobs"));
}

TEST(ParseTest, PositionalArgumentsBelongToInspectAndDownload) {
  EXPECT_EQ(parse({"some/where"}, {}, Command::kInspect).options.tool.path, "some/where");
  const HubOptions hub =
      parse({"org/name", "a.json", "--dry-run", "b/c"}, {}, Command::kDownload).options.hub;
  EXPECT_EQ(hub.repo, "org/name");
  EXPECT_EQ(hub.files, (std::vector<std::string>{"a.json", "b/c"}));
  EXPECT_TRUE(has(error_of({"a/b", "--cache-dir", "x", "--local-dir", "y"}, {}, Command::kDownload),
                  "are two places"));
  EXPECT_TRUE(has(error_of({"some/where"}), "stands alone"));
}

TEST_F(RecipeTest, UnknownDoubledAndMistypedKeysAreErrors) {
  EXPECT_TRUE(has(error_of({"--config", recipe(R"({"rollout-batchsize": 3})")}),
                  "unknown option \"rollout-batchsize\"; did you mean \"rollout-batch-size\"?"));
  EXPECT_TRUE(has(error_of({"--config", recipe(R"({"adam-eps": 1, "adam_eps": 2})")}),
                  "--adam-eps is given twice"));
  EXPECT_TRUE(has(error_of({"--config", recipe(R"({"seed": "3", "skip-saving": 1, "lr": true,
                                                   "rollout-stop": "x"})")}),
                  "4 problems"));
  EXPECT_TRUE(has(error_of({"--config", recipe(R"({"seed": 1.5})")}), "seed must be INT, got 1.5"));
  EXPECT_TRUE(has(error_of({"--config", recipe("[]")}), "a recipe is a JSON object"));
  EXPECT_TRUE(has(error_of({"--config", recipe(R"({"config": "x"})")}), "another recipe"));
  // JSON itself: a key that is there twice.
  EXPECT_THROW(parse({"--config", recipe(R"({"lr": 1, "lr": 2})")}), ConfigError);
  EXPECT_THROW(parse({"--config", directory_ + "/none.json"}), ConfigError);
}

TEST_F(RecipeTest, KeysOfOtherSubcommandsNullAndDescriptionAreLeftOut) {
  const ParsedCommand p = parse({"--config", recipe(R"({"description": "x", "with-logits": true,
      "eval-interval": null, "rollout-stop": ["a", "b"],
      "apply-chat-template-kwargs": {"thinking_mode": "chat"}})")});
  EXPECT_EQ(p.options.eval.eval_interval, 20);  // the preset's
  EXPECT_EQ(p.options.rollout.rollout_stop, (Words{"a", "b"}));
  EXPECT_EQ(p.options.data.apply_chat_template_kwargs, R"({"thinking_mode":"chat"})");
  EXPECT_TRUE(has(error_of({"--apply-chat-template-kwargs", "[1]"}), "must be a JSON object"));
  EXPECT_TRUE(has(error_of({"--apply-chat-template-kwargs", "{"}), "--apply-chat-template-kwargs"));
}

TEST(EnvironmentTest, ForeignEmptyAndClusterVariablesAreLeftAlone) {
  const ParsedCommand p = parse({}, {{"MILES_SCRIPT_LR", ""},
                                     {"MILES_SCRIPT_WITH_LOGITS", "1"},
                                     {"MILES_SCRIPT_EXTERNAL_RAY", "1"},
                                     {"MILES_SCRIPT_ENABLE_EVAL", "0"},
                                     {"MILES_SCRIPT_ROLLOUT_STOP", "'a b' c"}});
  EXPECT_EQ(p.options.optimizer.lr, 1e-6);
  EXPECT_FALSE(p.options.launch.enable_eval);
  EXPECT_FALSE(p.options.eval.eval_interval.has_value());
  EXPECT_EQ(p.options.rollout.rollout_stop, (Words{"a b", "c"}));
  EXPECT_TRUE(has(error_of({}, {{"MILES_SCRIPT_ENABLE_EVAL", "maybe"}}), "must be true or false"));
}

TEST(EnvironmentTest, SlurmGivesTheDefaultNumberOfNodes) {
  EXPECT_TRUE(
      has(error_of({}, {{"SLURM_JOB_NUM_NODES", "4"}}), "SLURM_JOB_NUM_NODES 4: Several nodes"));
  EXPECT_EQ(parse({"--num-nodes", "1"}, {{"SLURM_JOB_NUM_NODES", "4"}}).options.launch.num_nodes,
            1);
}

TEST(RefusalTest, WhatIsNotBuiltIsRefusedWithASentence) {
  const std::pair<Words, std::string> cases[] = {
      {{"--rollout-num-nodes", "1", "--num-nodes", "2"},
       "Rollout on nodes of its own is not built"},
      {{"--advantage-estimator", "gspo"}, "--advantage-estimator gspo: Only grpo is built"},
      {{"--use-kl-loss"}, "--use-kl-loss: A reference model is not built yet"},
      {{"--kl-loss-coef", "0.1"}, "--kl-loss-coef 0.1: A reference model"},
      {{"--precision", "fast"}, "--precision fast is trainer and rollout in different"},
      {{"--no-train-deterministic"}, "--no-train-deterministic: A faster mode"},
      {{"--sglang-tp-size", "8"}, "--sglang-tp-size 8: An engine over several ranks"},
      {{"--partial-rollout"}, "--partial-rollout: Partial and asynchronous rollout"},
      {{"--num-layers", "4"}, "--num-layers: The model's shape is read from"},
      {{"--eval-config", "x.yaml"}, "--eval-config: Evaluation is described by"},
      {{"--load", "elsewhere"}, "--load elsewhere: a place of its own"},
      {{"--num-gpus-per-node", "8"}, "--num-gpus-per-node 8 asks for"},
      {{"--attention-dropout", "0.1"}, "--attention-dropout 0.1: Dropout is not built"},
  };
  for (const auto& [args, sentence] : cases) EXPECT_TRUE(has(error_of(args), sentence));
  EXPECT_TRUE(
      has(error_of({}, {{"MILES_SCRIPT_CP_SIZE", "2"}}), "MILES_SCRIPT_CP_SIZE: Use --context"));
}

TEST(RefusalTest, TheStockValuesOfTheRecipeAreAccepted) {
  const ParsedCommand p = parse({"--tensor-model-parallel-size",
                                 "1",
                                 "--precision",
                                 "fp32",
                                 "--colocate",
                                 "--qkv-format",
                                 "bshd",
                                 "--recompute-granularity",
                                 "full",
                                 "--attention-dropout",
                                 "0.0",
                                 "--optimizer",
                                 "adam",
                                 "--kl-loss-coef",
                                 "0.00",
                                 "--entropy-coef",
                                 "0.00",
                                 "--num-gpus-per-node",
                                 "1",
                                 "--moe-router-freeze-gate",
                                 "--freeze-e-score-correction-bias",
                                 "--micro-batch-size",
                                 "1",
                                 "--optimizer-cpu-offload",
                                 "--sglang-attention-backend",
                                 "compressed"});
  // What has no effect is said, never passed over in silence.
  ASSERT_EQ(p.notes.size(), 1u);
  EXPECT_TRUE(has(p.notes[0], "--optimizer-cpu-offload has no effect"));
}

TEST(RulesTest, OptionsThatContradictEachOtherAreNamedWithTheirValues) {
  const std::pair<Words, std::string> cases[] = {
      {{"--over-sampling-batch-size", "8"}, "--over-sampling-batch-size 8 must be at least"},
      {{"--global-batch-size", "100"}, "--global-batch-size 100 must divide the 256 samples"},
      {{"--num-steps-per-rollout", "3"}, "--num-steps-per-rollout 3 must divide the 256 samples"},
      {{"--num-steps-per-rollout", "2", "--global-batch-size", "64"}, "leave one of the two out"},
      {{"--eps-clip-c", "1"}, "--eps-clip-c must be above 1"},
      {{"--eval-prompt-data", "a", "b", "c"}, "NAME PATH pairs, got 3 values"},
      {{"--save-retain-interval", "30"}, "must be a multiple of --save-interval, which is 20"},
      {{"--min-lr", "1"}, "--min-lr 1 must be at most --lr"},
      {{"--rollout-max-prompt-len", "9", "--rollout-max-context-len", "8"}, "must be at most"},
      {{"--model-name", "DeepSeek-V3"}, "--model-name DeepSeek-V3 is none of"},
      {{"--run-id", "a/b"}, "--run-id: 'a/b' cannot name a directory"},
      {{"--train-fp8", "--train-mxfp8"}, "--train-mxfp8: MXFP8 is not built yet"},
      {{"--speculative-num-steps", "2"},
       "--sglang-speculative-num-steps says how tokens are guessed"},
      {{"--enable-mtp", "--speculative-num-draft-tokens", "3"},
       "--sglang-speculative-num-draft-tokens 3 must be one more than"},
      {{"--enable-mtp", "--speculative-eagle-topk", "4"}, "A tree of guesses is not built"},
  };
  for (const auto& [args, sentence] : cases) EXPECT_TRUE(has(error_of(args), sentence));
  EXPECT_TRUE(
      has(error_of({"--init", "random", "--prompt-data", "x", "--output", "o"}, {}, Command::kSft),
          "--init random needs --model-config FILE"));
}

TEST(PresetTest, ModeTaskAndSwitchesStandForTrainerOptions) {
  const ParsedCommand stock = parse({"--data-dir", "/d", "--save-dir", "/s", "--run-id", "r"});
  EXPECT_EQ(stock.options.data.prompt_data, "/d/dapo-math-17k/dapo-math-17k.jsonl");
  EXPECT_EQ(stock.options.eval.eval_prompt_data, (Words{"aime", "/d/aime-2024/aime-2024.jsonl"}));
  EXPECT_EQ(stock.options.rollout.num_rollout, 3000);
  EXPECT_EQ(stock.options.checkpoint.save, "/s/r/checkpoints");
  EXPECT_EQ(stock.options.rollout.rollout_temperature, 0.8);
  EXPECT_TRUE(stock.options.algorithm.use_rollout_routing_replay);
  EXPECT_FALSE(stock.options.rollout.over_sampling_batch_size.has_value());
  EXPECT_EQ(stock.option("prompt-data").origin, "task dapo_aime");

  const ParsedCommand normal = parse({"--mode", "normal", "--skip-saving", "--no-enable-r3"});
  EXPECT_EQ(normal.options.rollout.over_sampling_batch_size, 512);
  EXPECT_EQ(normal.options.rollout.dynamic_sampling_filter_path, "check_reward_nonzero_std");
  EXPECT_FALSE(normal.options.checkpoint.save_interval.has_value());
  EXPECT_FALSE(normal.options.algorithm.use_rollout_routing_replay);

  const ParsedCommand pro = parse({"--model-name", kPro});
  EXPECT_FALSE(pro.options.algorithm.use_rollout_routing_replay);
  EXPECT_EQ(parse({"--model-name", kTiny}).options.launch.task, Task::kDigitSum);
  EXPECT_FALSE(parse({"--num-epoch", "2"}).options.rollout.num_rollout.has_value());
}

TEST(DerivedTest, NamesFollowTheRecipe) {
  const Derived flash =
      derive(parse({"--model-dir", "/m", "--run-id", "r", "--save-dir", "/s"}).options);
  EXPECT_EQ(flash.bf16_name, "DeepSeek-V4-Flash-FP8-bf16");
  EXPECT_EQ(flash.torch_dist_name, "DeepSeek-V4-Flash-FP8_torch_dist");
  EXPECT_EQ(flash.rollout_name, "DeepSeek-V4-Flash-FP8");
  EXPECT_EQ(flash.hf_checkpoint, "/m/DeepSeek-V4-Flash-FP8");
  EXPECT_EQ(flash.ref_load, "/m/DeepSeek-V4-Flash-FP8_torch_dist");
  EXPECT_EQ(flash.checkpoint_path, "/s/r/checkpoints");
  EXPECT_EQ(flash.model_org, "sgl-project");
  EXPECT_TRUE(flash.colocate);
  EXPECT_EQ(flash.precision, Precision::kFp32);
  Options options;
  options.launch.model_name = kPro;
  EXPECT_EQ(derive(options).bf16_name, "DeepSeek-V4-Pro-BF16");
  options.launch.model_name = kFlash4Layer;
  options.launch.rollout_fp8 = false;
  options.launch.model_local_dir = "/local";
  EXPECT_EQ(derive(options).model_org, "Pinaster");
  EXPECT_EQ(derive(options).hf_checkpoint, "/local/DeepSeek-V4-Flash-FP8-4layer-bf16");
}

TEST(DerivedTest, AGivenCheckpointNamesTheModel) {
  const ParsedCommand p = parse({"--hf-checkpoint", "/x/Mine/"});
  EXPECT_EQ(p.options.launch.model_name, "Mine");
  EXPECT_EQ(
      parse({"--hf-checkpoint", "/x/Mine", "--model-name", "Other"}).options.launch.model_name,
      "Other");
}

TEST(DerivedTest, PrecisionFollowsTheFp8SwitchesWhenGiven) {
  const auto resolve = [](std::optional<bool> train, std::optional<bool> rollout,
                          std::optional<Precision> precision, std::string* problem) {
    Options o;
    o.launch.train_fp8 = train;
    o.launch.rollout_fp8 = rollout;
    o.runtime.precision = precision;
    return resolve_precision(o, problem);
  };
  std::string problem;
  EXPECT_EQ(resolve({}, {}, {}, &problem), Precision::kFp32);
  EXPECT_EQ(resolve(true, true, {}, &problem), Precision::kParityFp8);
  EXPECT_EQ(resolve(false, false, {}, &problem), Precision::kParityBf16);
  EXPECT_EQ(resolve(false, true, {}, &problem), Precision::kFast);
  EXPECT_EQ(resolve(false, {}, {}, &problem), Precision::kFast);
  EXPECT_EQ(resolve(true, {}, Precision::kParityFp8, &problem), Precision::kParityFp8);
  EXPECT_EQ(problem, "");
  resolve({}, {}, Precision::kFast, &problem);
  EXPECT_TRUE(has(problem, "--no-rollout-fp8"));
  resolve(true, true, Precision::kFp32, &problem);
  EXPECT_TRUE(has(problem, "--precision fp32 contradicts --train-fp8"));
}

TEST(DerivedTest, GuessedTokensFollowTheSpeculativeOptions) {
  EXPECT_EQ(num_guessed_tokens(parse({}).options), 0);
  EXPECT_EQ(num_guessed_tokens(parse({"--enable-mtp"}).options), 3);
  const Words recipe = {
      "--sglang-speculative-algorithm",  "EAGLE", "--sglang-speculative-num-steps",        "2",
      "--sglang-speculative-eagle-topk", "1",     "--sglang-speculative-num-draft-tokens", "3"};
  EXPECT_EQ(num_guessed_tokens(parse(recipe).options), 2);
}

TEST(DerivedTest, RunIdsAreTimeAndThreeDigits) {
  const std::string id = make_run_id();
  ASSERT_EQ(id.size(), 17u);
  EXPECT_EQ(id[6], '-');
  EXPECT_EQ(id[13], '-');
  EXPECT_EQ(id.find_first_not_of("0123456789-"), std::string::npos);
}

TEST(PrintTest, LongValuesAreCutInTheTableAndWholeInJson) {
  const std::string path = "/" + std::string(60, 'a');
  const ParsedCommand p =
      parse({"--data-dir", path, "--run-id", "r", "--save-dir", std::string(50, 's')});
  const std::string table = format_option_table(p);
  EXPECT_TRUE(has(table, "| Argument "));
  EXPECT_TRUE(has(table, "| " + path.substr(0, 47) + "... |"));
  EXPECT_TRUE(has(table, "| " + std::string(50, 's') + " |"));
  EXPECT_TRUE(has(table, "(unset)"));
  const Json json = to_json(p);
  EXPECT_EQ(json["command"], "train");
  EXPECT_EQ(json["options"]["data-dir"], path);
  EXPECT_EQ(json["options"]["adam-beta2"], 0.98);
  EXPECT_TRUE(json["options"]["num-epoch"].is_null());
  EXPECT_EQ(json["sources"]["data-dir"], "command line --data-dir");
  EXPECT_EQ(json["sources"]["adam-beta2"], "preset the recipe");
  EXPECT_EQ(json["hash"], config_hash(p));
}

TEST(HashTest, OnlyWhatDecidesTheResultCounts) {
  const std::string hash = config_hash(parse({"--run-id", "a"}));
  EXPECT_EQ(hash.size(), 64u);
  EXPECT_EQ(config_hash(parse({"--run-id", "b", "--threads", "1", "--save-dir", "/s",
                               "--cpu-kernels", "avx2", "--chunked-prefill-size", "7"})),
            hash);
  // The same value from another source is the same configuration.
  EXPECT_EQ(config_hash(parse({"--adam-beta2", "0.98"})), hash);
  EXPECT_EQ(config_hash(parse({}, {{"MILES_SCRIPT_ADAM_BETA2", "0.980"}})), hash);
  EXPECT_NE(config_hash(parse({"--adam-beta2", "0.99"})), hash);
  EXPECT_NE(config_hash(parse({"--seed", "1"})), hash);
  EXPECT_EQ(config_hash(parse({"--run-id", "a"}, {}, Command::kFullTrain)), hash);
}

TEST(TableTest, EveryRowIsReadBackAsItIsWritten) {
  Options options;
  const OptionTable table = OptionTable::all(options);
  for (const Option& row : table.rows()) {
    if (row.is_unbuilt() || row.value().is_null()) continue;
    const Json before = row.value();
    Words words;
    if (before.is_array())
      for (const Json& entry : before) words.push_back(value_text(entry));
    else
      words = {value_text(before)};
    EXPECT_EQ(row.set(words), "") << row.name;
    EXPECT_EQ(row.value(), before) << row.name;
  }
}

}  // namespace
}  // namespace fathom::config
