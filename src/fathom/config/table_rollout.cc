// Rows of data, rollout, engine, reward and evaluation.
#include "fathom/config/table.h"

namespace fathom::config {
namespace {

constexpr CommandSet kReadsPrompts = kPipeline | set_of(Command::kSft, Command::kEval);
constexpr CommandSet kGenerates = kPipeline | set_of(Command::kEval);
constexpr CommandSet kRunsEngine =
    kPipeline | set_of(Command::kEval, Command::kGenerate, Command::kServe);

void describe_data(OptionTable& table, Options& options) {
  DataOptions& o = options.data;
  table.group("Data", kReadsPrompts);
  table
      .add("prompt-data", &o.prompt_data,
           "prompts, a .jsonl or .parquet file; PATH@[a:b] takes rows a to b. The examples of sft")
      .path()
      .for_commands(kPipeline | set_of(Command::kSft))
      .required_for(kTraining | set_of(Command::kSft));
  table.add("input-key", &o.input_key, "field with the prompt: a string, or a list of messages");
  table.add("label-key", &o.label_key, "field with the right answer; unset: no labels")
      .for_commands(kGenerates);
  table.add("metadata-key", &o.metadata_key, "field with what is passed on to the reward");
  table.add("tool-key", &o.tool_key, "field with the tools offered to the model");
  table.add("apply-chat-template", &o.apply_chat_template,
            "render prompts with the chat encoding; a string is one user message");
  table
      .add("apply-chat-template-kwargs", &o.apply_chat_template_kwargs,
           "settings of the chat encoding, such as {\"thinking_mode\": \"chat\"}")
      .json();
  table.add("rollout-shuffle", &o.rollout_shuffle, "new order of the prompts every epoch")
      .for_commands(kPipeline);
  table.add("rollout-seed", &o.rollout_seed, "seed of that order and of sampling")
      .at_least(0)
      .for_commands(kGenerates);
  table
      .add("rollout-max-prompt-len", &o.rollout_max_prompt_len,
           "leave out prompts of more tokens; unset: no limit")
      .at_least(1);
  table.add("skip-bad-lines", &o.skip_bad_lines,
            "skip and count lines that are not right, instead of ending with an error");
}

void describe_rollout(OptionTable& table, Options& options) {
  RolloutOptions& o = options.rollout;
  table.group("Rollout", kPipeline);
  table.add("num-rollout", &o.num_rollout, "steps of the run; counts before --num-epoch")
      .at_least(0);
  table.add("num-epoch", &o.num_epoch, "passes over the prompts").at_least(1);
  table.add("rollout-batch-size", &o.rollout_batch_size, "prompts of a step")
      .at_least(1)
      .required_for(kTraining);
  table.add("n-samples-per-prompt", &o.n_samples_per_prompt, "answers to each prompt").at_least(1);
  table
      .add("over-sampling-batch-size", &o.over_sampling_batch_size,
           "prompts submitted at a time; unset: --rollout-batch-size")
      .at_least(1);
  table
      .add("dynamic-sampling-filter-path", &o.dynamic_sampling_filter_path,
           "check_reward_nonzero_std drops prompts whose answers are all equally good")
      .built_only({"", "check_reward_nonzero_std",
                   "miles.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std"},
                  "The only filter that is built is check_reward_nonzero_std; filters of one's own "
                  "are not built yet.");
  table
      .add("rollout-temperature", &o.rollout_temperature,
           "sampling temperature, also in the loss; 0 takes the likeliest token")
      .at_least(0)
      .for_commands(kGenerates);
  table.add("rollout-top-p", &o.rollout_top_p, "keep the likeliest tokens up to this share; 1: off")
      .above(0)
      .at_most(1)
      .for_commands(kGenerates);
  table.add("rollout-top-k", &o.rollout_top_k, "keep this many likeliest tokens; 0 and -1: off")
      .at_least(-1)
      .for_commands(kGenerates);
  table
      .add("rollout-max-response-len", &o.rollout_max_response_len,
           "tokens of an answer; unset: 1024")
      .at_least(1)
      .for_commands(kGenerates);
  table
      .add("rollout-max-context-len", &o.rollout_max_context_len,
           "tokens of prompt and answer together; unset: what the model can")
      .at_least(2);
  table.add("rollout-stop", &o.rollout_stop, "strings that end an answer").for_commands(kGenerates);
  table.add("rollout-stop-token-ids", &o.rollout_stop_token_ids, "tokens that end an answer")
      .at_least(0)
      .for_commands(kGenerates);
  table
      .add("rollout-skip-special-tokens", &o.rollout_skip_special_tokens,
           "leave special tokens out of an answer's text")
      .built_only({"false"}, "Answers without their special tokens are not built yet.");
}

void describe_engine(OptionTable& table, Options& options) {
  EngineOptions& o = options.engine;
  const std::string one_rank =
      "An engine over several ranks is not built yet; the engine runs inside this process.";
  table.group("Rollout engine", kRunsEngine);
  table
      .add("sglang-max-running-requests", &o.max_running_requests,
           "answers in the making at a time. No answer depends on it")
      .at_least(1)
      .not_hashed();
  table
      .add("sglang-chunked-prefill-size", &o.chunked_prefill_size,
           "prompt tokens of an engine step, tokens of a piece in score. No result depends on it")
      .at_least(1)
      .for_commands(kRunsEngine | set_of(Command::kScore))
      .not_hashed();
  table
      .add("sglang-page-size", &o.page_size,
           "tokens that a page of state covers, a multiple of the model's compress ratios; unset: "
           "256 or the next above, 16 where all ratios divide 16")
      .at_least(1)
      .not_hashed();
  table
      .add(
          "sglang-mem-fraction-static", &o.mem_fraction_static,
          "share of the memory that is free at the start that states and cached prefixes may take. "
          "No answer depends on it")
      .above(0)
      .at_most(1)
      .not_hashed();
  table
      .add("sglang-state-memory-bytes", &o.state_memory_bytes,
           "the same in bytes, counts before --sglang-mem-fraction-static")
      .at_least(1)
      .not_hashed();
  table
      .add_choice<Admission>(
          "sglang-admission", &o.admission,
          {{"estimate", Admission::kEstimate}, {"worst-case", Admission::kWorstCase}},
          "memory set aside for tokens to come: worst-case never preempts, estimate runs more at a "
          "time")
      .not_hashed();
  table
      .add("sglang-disable-radix-cache", &o.disable_radix_cache,
           "keep no states of prompts for others that begin the same")
      .not_hashed();
  table
      .add_choice<SpeculativeAlgorithm>(
          "sglang-speculative-algorithm", &o.speculative_algorithm,
          {{"EAGLE", SpeculativeAlgorithm::kEagle}, {"NEXTN", SpeculativeAlgorithm::kNextn}},
          "guess tokens with the MTP head and verify them; both names mean that. No answer depends "
          "on it")
      .not_hashed();
  table
      .add("sglang-speculative-num-steps", &o.speculative_num_steps,
           "tokens guessed at a time; unset: 3")
      .at_least(1)
      .not_hashed();
  table
      .add("sglang-speculative-eagle-topk", &o.speculative_eagle_topk,
           "guesses for each place: one")
      .at_least(1)
      .built_only({"1"}, "A tree of guesses is not built; one chain is.")
      .not_hashed();
  table
      .add("sglang-speculative-num-draft-tokens", &o.speculative_num_draft_tokens,
           "tokens verified at a time: one more than are guessed, as a chain has it")
      .at_least(2)
      .not_hashed();
  table
      .add("sglang-attention-backend", &o.attention_backend,
           "compressed: V4's own attention, the only one there is")
      .built_only({"compressed"}, "V4's attention is compressed; there is no other.")
      .not_hashed();
  table.add_choice<RolloutLayout>(
      "rollout-layout", &o.rollout_layout,
      {{"shared", RolloutLayout::kShared}, {"engine", RolloutLayout::kEngine}},
      "shared: engines read the trainer's own shards; engine: every rank runs an engine on a copy "
      "of all of the model, sent after every step; unset: shared with one pipeline stage");
  table.add("rollout-num-gpus-per-engine", &o.rollout_num_gpus_per_engine, "ranks of an engine")
      .at_least(1)
      .built_only({"1"}, one_rank)
      .planned();
  table.add("sglang-tp-size", &o.tp_size, "tensor parallel size of an engine")
      .at_least(1)
      .built_only({"1"}, one_rank)
      .planned();
  table.add("sglang-dp-size", &o.dp_size, "data parallel size of an engine's attention")
      .at_least(1)
      .built_only({"1"}, one_rank)
      .planned();
  table.add("sglang-ep-size", &o.ep_size, "expert parallel size of an engine")
      .at_least(1)
      .built_only({"1"}, one_rank)
      .planned();
  table
      .add("sglang-enable-dp-attention", &o.enable_dp_attention,
           "data parallel attention beside expert parallel experts")
      .built_only({"false"}, one_rank)
      .planned();
}

void describe_reward_and_eval(OptionTable& table, Options& options) {
  table.group("Reward", kGenerates);
  table.add("rm-type", &options.reward.rm_type, "how answers are graded: math")
      .required_for(kTraining | set_of(Command::kEval))
      .built_only({"math"}, "The only reward that is built is math.");

  EvalOptions& o = options.eval;
  table.group("Evaluation", kGenerates);
  table.add("eval-interval", &o.eval_interval, "evaluate after every so many steps; unset: never")
      .at_least(1)
      .for_commands(kPipeline);
  table
      .add("eval-prompt-data", &o.eval_prompt_data,
           "NAME PATH pairs of held-out prompts; a single PATH is named aime")
      .required_for(set_of(Command::kEval));
  table
      .add("skip-eval-before-train", &o.skip_eval_before_train,
           "no evaluation before the first step")
      .for_commands(kPipeline);
  table.add("eval-input-key", &o.eval_input_key, "as --input-key, which holds when unset");
  table.add("eval-label-key", &o.eval_label_key, "as --label-key, which holds when unset");
  table.add("eval-tool-key", &o.eval_tool_key, "as --tool-key, which holds when unset");
  table.add("n-samples-per-eval-prompt", &o.n_samples_per_eval_prompt, "answers to each prompt")
      .at_least(1);
  table
      .add("eval-temperature", &o.eval_temperature,
           "temperature, 0 for greedy; unset: --rollout-temperature")
      .at_least(0);
  table.add("eval-top-p", &o.eval_top_p, "unset: --rollout-top-p").above(0).at_most(1);
  table.add("eval-top-k", &o.eval_top_k, "unset: --rollout-top-k").at_least(-1);
  table
      .add("eval-max-response-len", &o.eval_max_response_len,
           "tokens of an answer; unset: --rollout-max-response-len")
      .at_least(1);
  table
      .add("eval-max-prompt-len", &o.eval_max_prompt_len,
           "leave out prompts of more tokens; unset: --rollout-max-prompt-len")
      .at_least(1);
  table
      .add("eval-sampled", &o.eval_sampled,
           "report eval_sampled/NAME at the rollout's temperature beside it")
      .for_commands(kPipeline);
}

}  // namespace

void describe_rollout_options(OptionTable& table, Options& options) {
  describe_data(table, options);
  describe_rollout(table, options);
  describe_engine(table, options);
  describe_reward_and_eval(table, options);
}

}  // namespace fathom::config
