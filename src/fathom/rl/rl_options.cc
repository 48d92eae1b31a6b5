#include "fathom/rl/rl_options.h"

#include "fathom/base/error.h"
#include "fathom/tokenizer/chat.h"

namespace fathom {
namespace {

constexpr int64_t kDefaultMicroBatchTokens = 8192;
constexpr int64_t kDefaultResponseTokens = 1024;

SamplingParams rollout_sampling(const config::RolloutOptions& r) {
  SamplingParams p;
  p.temperature = static_cast<float>(r.rollout_temperature);
  p.top_p = static_cast<float>(r.rollout_top_p);
  p.top_k = r.rollout_top_k;
  p.max_new_tokens = r.rollout_max_response_len.value_or(kDefaultResponseTokens);
  p.stop = r.rollout_stop;
  for (int64_t id : r.rollout_stop_token_ids) p.stop_token_ids.push_back(static_cast<int32_t>(id));
  return p;
}

KlType kl_type_of(config::KlLossType type) {
  switch (type) {
    case config::KlLossType::kK1:
      return KlType::kK1;
    case config::KlLossType::kK2:
      return KlType::kK2;
    case config::KlLossType::kK3:
      return KlType::kK3;
    case config::KlLossType::kLowVarKl:
      return KlType::kLowVar;
  }
  return KlType::kK1;
}

}  // namespace

CollectorOptions collector_options(const config::Options& o) {
  if (!o.rollout.rollout_batch_size) {
    throw ConfigError("--rollout-batch-size is needed: prompts of one rollout");
  }
  CollectorOptions c;
  c.rollout_batch_size = *o.rollout.rollout_batch_size;
  c.over_sampling_batch_size = o.rollout.over_sampling_batch_size.value_or(c.rollout_batch_size);
  c.n_samples_per_prompt = o.rollout.n_samples_per_prompt;
  c.keep_only_reward_spread =
      o.rollout.dynamic_sampling_filter_path.ends_with("check_reward_nonzero_std");
  c.sampling = rollout_sampling(o.rollout);
  c.max_context_tokens = o.rollout.rollout_max_context_len.value_or(0);
  c.rollout_seed = static_cast<uint64_t>(o.data.rollout_seed);
  c.reward = parse_reward_type(o.reward.rm_type);
  c.record_replay = o.algorithm.use_rollout_routing_replay;
  return c;
}

PolicyStepOptions policy_step_options(const config::Options& o) {
  PolicyStepOptions p;
  p.loss.eps_clip = o.algorithm.eps_clip;
  p.loss.eps_clip_high = o.algorithm.eps_clip_high.value_or(o.algorithm.eps_clip);
  p.loss.eps_clip_c = o.algorithm.eps_clip_c;
  p.loss.entropy_coef = o.algorithm.entropy_coef;
  p.loss.kl_loss_coef = o.algorithm.use_kl_loss ? o.algorithm.kl_loss_coef : 0.0;
  p.loss.kl_type = kl_type_of(o.algorithm.kl_loss_type);
  // Temperature 0 samples greedily and reports the log-probs of temperature 1.
  p.temperature = o.rollout.rollout_temperature > 0.0 ? o.rollout.rollout_temperature : 1.0;
  const config::TrainOptions& t = o.train;
  p.micro_batches.max_tokens = t.max_tokens_per_gpu.value_or(kDefaultMicroBatchTokens);
  p.micro_batches.num_samples = t.micro_batch_size.value_or(0);
  p.micro_batches.even = t.use_dynamic_batch_size;
  p.balance_samples = t.balance_data;
  p.observe_entropy = o.algorithm.observe_training_entropy;
  p.replay_routes = o.algorithm.use_rollout_routing_replay;
  return p;
}

OptimizerOptions optimizer_options(const config::OptimizerOptions& o) {
  return {.beta1 = o.adam_beta1,
          .beta2 = o.adam_beta2,
          .eps = o.adam_eps,
          .weight_decay = o.weight_decay,
          .clip_grad = o.clip_grad};
}

int64_t steps_per_rollout(const config::Options& o) {
  const int64_t samples = o.rollout.rollout_batch_size.value_or(1) * o.rollout.n_samples_per_prompt;
  if (!o.train.global_batch_size) return o.train.num_steps_per_rollout.value_or(1);
  const int64_t batch = *o.train.global_batch_size;
  if (batch < 1 || samples % batch != 0 ||
      (o.train.num_steps_per_rollout && *o.train.num_steps_per_rollout * batch != samples)) {
    throw ConfigError(
        str_cat("--global-batch-size ", batch, " does not fit ", samples,
                " samples of a rollout (--rollout-batch-size times ",
                "--n-samples-per-prompt)\n  fix: give one that divides it, and agrees ",
                "with --num-steps-per-rollout"));
  }
  return samples / batch;
}

int64_t num_rollouts(const config::Options& o, int64_t num_prompts) {
  if (o.rollout.num_rollout) return *o.rollout.num_rollout;
  if (!o.rollout.num_epoch) throw ConfigError("--num-rollout or --num-epoch is needed");
  return *o.rollout.num_epoch * (num_prompts / o.rollout.rollout_batch_size.value_or(1));
}

LrScheduleOptions lr_schedule_options(const config::OptimizerOptions& o, int64_t num_steps) {
  LrScheduleOptions s;
  s.lr = o.lr;
  s.min_lr = o.min_lr;
  s.style = o.lr_decay_style == config::LrDecay::kConstant ? LrDecayStyle::kConstant
            : o.lr_decay_style == config::LrDecay::kLinear ? LrDecayStyle::kLinear
                                                           : LrDecayStyle::kCosine;
  s.warmup_steps = o.lr_warmup_iters;
  s.total_steps = o.lr_decay_iters.value_or(num_steps);
  return s;
}

EvaluationOptions evaluation_options(const config::Options& o) {
  EvaluationOptions e;
  e.sampling = rollout_sampling(o.rollout);
  if (o.eval.eval_temperature)
    e.sampling.temperature = static_cast<float>(*o.eval.eval_temperature);
  if (o.eval.eval_top_p) e.sampling.top_p = static_cast<float>(*o.eval.eval_top_p);
  if (o.eval.eval_top_k) e.sampling.top_k = *o.eval.eval_top_k;
  if (o.eval.eval_max_response_len) e.sampling.max_new_tokens = *o.eval.eval_max_response_len;
  e.n_samples_per_prompt = o.eval.n_samples_per_eval_prompt;
  e.seed = static_cast<uint64_t>(o.data.rollout_seed);
  e.reward = parse_reward_type(o.reward.rm_type);
  return e;
}

EvaluationOptions sampled_evaluation_options(const config::Options& o) {
  EvaluationOptions e = evaluation_options(o);
  const int64_t max_new_tokens = e.sampling.max_new_tokens;
  e.sampling = rollout_sampling(o.rollout);
  e.sampling.max_new_tokens = max_new_tokens;
  e.n_samples_per_prompt = 1;
  return e;
}

PromptFile read_prompt_file(const config::Options& o, const std::string& path,
                            const Tokenizer& tokenizer, bool for_eval,
                            const std::string& label_option) {
  PromptFileOptions p;
  p.label_option = label_option;
  p.input_key = for_eval ? o.eval.eval_input_key.value_or(o.data.input_key) : o.data.input_key;
  const auto label_key =
      for_eval && o.eval.eval_label_key ? o.eval.eval_label_key : o.data.label_key;
  p.label_key = label_key.value_or("");
  p.label_is_graded = label_option != "--response-key";
  p.metadata_key = o.data.metadata_key;
  p.tool_key = for_eval ? o.eval.eval_tool_key.value_or(o.data.tool_key) : o.data.tool_key;
  p.apply_chat_template = o.data.apply_chat_template;
  p.max_prompt_tokens = (for_eval && o.eval.eval_max_prompt_len ? o.eval.eval_max_prompt_len
                                                                : o.data.rollout_max_prompt_len)
                            .value_or(0);
  p.skip_bad_lines = o.data.skip_bad_lines;
  ChatOptions defaults;
  defaults.drop_thinking = false;  // multi-turn prompts only ever grow
  const ChatOptions chat = parse_chat_options(
      parse_json(o.data.apply_chat_template_kwargs, "--apply-chat-template-kwargs"),
      "--apply-chat-template-kwargs", defaults);
  return read_prompts(
      path, p,
      [&](const Json& messages, const Json& tools) {
        ChatOptions with_tools = chat;
        if (!tools.is_null()) with_tools.tools = tools;
        return encode_messages(messages, with_tools);
      },
      [&](const std::string& text) { return tokenizer.encode(text); });
}

}  // namespace fathom
