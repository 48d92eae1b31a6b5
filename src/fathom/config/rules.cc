#include "fathom/config/rules.h"

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/config/derived.h"

namespace fathom::config {
namespace {

using Complaints = std::vector<Complaint>;

bool is_known_model(const std::string& name) {
  return name == kFlash || name == kFlash4Layer || name == kPro || name == kTiny;
}

void check_launch(const ParsedCommand& p, Complaints& out) {
  const LaunchOptions& o = p.options.launch;
  if (!o.hf_checkpoint && !o.model_org && !is_known_model(o.model_name))
    out.push_back(
        {{"model-name", "hf-checkpoint"},
         str_cat("--model-name ", o.model_name, " is none of ", kFlash, ", ", kFlash4Layer, ", ",
                 kPro, ", ", kTiny,
                 "; another name needs --hf-checkpoint DIR, or --model-org to download it")});
  if (o.model_name.empty() || o.model_name.find('/') != std::string::npos)
    out.push_back({{"model-name"},
                   str_cat("--model-name: '", o.model_name,
                           "' cannot name a directory; it may "
                           "not be empty or hold a slash")});
  if (o.run_id && (o.run_id->empty() || *o.run_id == "." || *o.run_id == ".." ||
                   o.run_id->find('/') != std::string::npos))
    out.push_back({{"run-id"},
                   str_cat("--run-id: '", *o.run_id,
                           "' cannot name a directory; it may not be "
                           "empty, a dot or hold a slash")});
  if (o.train_fp8.value_or(false) && o.train_mxfp8)
    out.push_back({{"train-fp8", "train-mxfp8"},
                   "--train-fp8 and --train-mxfp8: train_fp8 and train_mxfp8 are mutually "
                   "exclusive; give one of them"});
  if (o.rollout_fp8.value_or(false) && o.rollout_mxfp8)
    out.push_back({{"rollout-fp8", "rollout-mxfp8"},
                   "--rollout-fp8 and --rollout-mxfp8: rollout_fp8 and rollout_mxfp8 are mutually "
                   "exclusive; give one of them"});
  if (o.rollout_num_nodes > 0 && o.rollout_num_nodes >= o.num_nodes)
    out.push_back({{"rollout-num-nodes", "num-nodes"},
                   str_cat("--rollout-num-nodes ", o.rollout_num_nodes,
                           " leaves no node for training; it must be below --num-nodes, which is ",
                           o.num_nodes)});
  // Stages that compute run as local ranks; getting and copying files does not.
  const bool computes = p.command != Command::kPrepareDownload &&
                        p.command != Command::kPrepareSpmd && p.command != Command::kPrepareCp &&
                        !computes_on_paper(p.command, p.options);
  if (computes && p.is_given("num-gpus-per-node") && o.num_gpus_per_node != o.num_procs)
    out.push_back({{"num-gpus-per-node", "num-procs"},
                   str_cat("--num-gpus-per-node ", o.num_gpus_per_node,
                           " asks for as many local ranks, and --num-procs is ", o.num_procs,
                           ": GPUs and several local ranks are not built yet; leave it out, or "
                           "give 1")});
}

void check_rollout(const ParsedCommand& p, Complaints& out) {
  const RolloutOptions& r = p.options.rollout;
  const TrainOptions& t = p.options.train;
  if (!r.num_rollout && !r.num_epoch)
    out.push_back({{"num-rollout", "num-epoch"},
                   "how long to train is not said; give --num-rollout or --num-epoch"});
  if (!r.rollout_batch_size) return;  // reported as missing
  const int64_t batch = *r.rollout_batch_size;
  if (r.over_sampling_batch_size && *r.over_sampling_batch_size < batch)
    out.push_back({{"over-sampling-batch-size", "rollout-batch-size"},
                   str_cat("--over-sampling-batch-size ", *r.over_sampling_batch_size,
                           " must be at least --rollout-batch-size, which is ", batch)});
  const int64_t samples = batch * r.n_samples_per_prompt;
  const std::string samples_text =
      str_cat(samples, " samples of a rollout (--rollout-batch-size ", batch,
              " times --n-samples-per-prompt ", r.n_samples_per_prompt, ")");
  const std::vector<std::string> names = {"global-batch-size", "num-steps-per-rollout",
                                          "rollout-batch-size", "n-samples-per-prompt"};
  if (t.num_steps_per_rollout && samples % *t.num_steps_per_rollout != 0)
    out.push_back({names, str_cat("--num-steps-per-rollout ", *t.num_steps_per_rollout,
                                  " must divide the ", samples_text)});
  else if (t.global_batch_size && samples % *t.global_batch_size != 0)
    out.push_back({names, str_cat("--global-batch-size ", *t.global_batch_size, " must divide the ",
                                  samples_text)});
  else if (t.global_batch_size && t.num_steps_per_rollout &&
           *t.global_batch_size * *t.num_steps_per_rollout != samples)
    out.push_back({names, str_cat("--global-batch-size ", *t.global_batch_size,
                                  " times --num-steps-per-rollout ", *t.num_steps_per_rollout,
                                  " must be the ", samples_text, "; leave one of the two out")});
}

void check_training(const ParsedCommand& p, Complaints& out) {
  const Options& o = p.options;
  check_rollout(p, out);
  const RolloutOptions& r = o.rollout;
  if (o.data.rollout_max_prompt_len && r.rollout_max_context_len &&
      *o.data.rollout_max_prompt_len > *r.rollout_max_context_len)
    out.push_back({{"rollout-max-prompt-len", "rollout-max-context-len"},
                   str_cat("--rollout-max-prompt-len ", *o.data.rollout_max_prompt_len,
                           " must be at most --rollout-max-context-len, which is ",
                           *r.rollout_max_context_len)});
  if (o.algorithm.kl_coef != 0.0 && o.algorithm.kl_loss_coef != 0.0)
    out.push_back({{"kl-coef", "kl-loss-coef"},
                   "--kl-coef and --kl-loss-coef are both above 0; give one of them"});
  if (o.eval.eval_interval && o.eval.eval_prompt_data.empty())
    out.push_back({{"eval-interval", "eval-prompt-data"},
                   str_cat("--eval-interval ", *o.eval.eval_interval,
                           " has nothing to evaluate on; give --eval-prompt-data NAME PATH")});
  if (o.parallel.pipeline_model_parallel_size > 1 &&
      o.engine.rollout_layout == RolloutLayout::kShared)
    out.push_back({{"rollout-layout", "pipeline-model-parallel-size"},
                   str_cat("--rollout-layout shared needs all layers on every rank, "
                           "--pipeline-model-parallel-size is ",
                           o.parallel.pipeline_model_parallel_size,
                           "; give --rollout-layout engine, or leave it out")});
  const CheckpointOptions& c = o.checkpoint;
  if (c.save_retain_interval && c.save_interval && *c.save_retain_interval % *c.save_interval != 0)
    out.push_back({{"save-retain-interval", "save-interval"},
                   str_cat("--save-retain-interval ", *c.save_retain_interval,
                           " must be a multiple of --save-interval, which is ", *c.save_interval)});
  const std::string checkpoints = derive(o).checkpoint_path;
  for (const auto& [name, value] : {std::pair{"load", c.load}, std::pair{"save", c.save}})
    if (value && *value != checkpoints)
      out.push_back({{name},
                     str_cat("--", name, " ", *value,
                             ": a place of its own for checkpoints is not "
                             "built yet; they are in ",
                             checkpoints, " by --save-dir and --run-id")});
}

void check_speculation(const ParsedCommand& p, Complaints& out) {
  const EngineOptions& o = p.options.engine;
  const int64_t guessed = num_guessed_tokens(p.options);
  for (const auto& [name, value] :
       {std::pair{"sglang-speculative-num-steps", o.speculative_num_steps},
        std::pair{"sglang-speculative-num-draft-tokens", o.speculative_num_draft_tokens}}) {
    if (value && guessed == 0)
      out.push_back({{name, "sglang-speculative-algorithm"},
                     str_cat("--", name,
                             " says how tokens are guessed, and none are; give "
                             "--sglang-speculative-algorithm EAGLE, or leave it out")});
  }
  if (guessed > 0 && o.speculative_num_draft_tokens &&
      *o.speculative_num_draft_tokens != guessed + 1)
    out.push_back(
        {{"sglang-speculative-num-draft-tokens", "sglang-speculative-num-steps"},
         str_cat("--sglang-speculative-num-draft-tokens ", *o.speculative_num_draft_tokens,
                 " must be one more than --sglang-speculative-num-steps, which is ", guessed,
                 ": a chain of guesses and the token before it")});
}

void check_eval_pairs(const ParsedCommand& p, Complaints& out) {
  const size_t n = p.options.eval.eval_prompt_data.size();
  if (n > 1 && n % 2 != 0)
    out.push_back({{"eval-prompt-data"},
                   str_cat("--eval-prompt-data needs NAME PATH pairs, got ", n, " values")});
}

void check_optimizer(const ParsedCommand& p, Complaints& out) {
  const OptimizerOptions& o = p.options.optimizer;
  if (o.min_lr > o.lr)
    out.push_back({{"min-lr", "lr"},
                   str_cat("--min-lr ", o.min_lr, " must be at most --lr, which is ", o.lr)});
  if (o.lr_decay_iters && *o.lr_decay_iters < o.lr_warmup_iters)
    out.push_back({{"lr-decay-iters", "lr-warmup-iters"},
                   str_cat("--lr-decay-iters ", *o.lr_decay_iters,
                           " must be at least --lr-warmup-iters, which is ", o.lr_warmup_iters)});
}

void check_inspect(const ParsedCommand& p, Complaints& out) {
  const ToolOptions& o = p.options.tool;
  const size_t num_paths = o.diff.size() + (o.path ? 1 : 0);
  if (num_paths == 0)
    out.push_back({{"path"}, "--path is missing: a checkpoint, a safetensors file or a run"});
  else if (!o.diff.empty() && num_paths != 2)
    out.push_back(
        {{"path", "diff"},
         str_cat("--diff compares two paths, got ", num_paths, ": --diff A B, or PATH --diff B")});
  if (!o.diff.empty() && o.verify)
    out.push_back({{"diff", "verify"}, "--diff and --verify are two jobs; give one of them"});
}

void check_sft(const ParsedCommand& p, Complaints& out) {
  const Options& o = p.options;
  if (o.sft.init == SftInit::kCheckpoint && !o.launch.hf_checkpoint)
    out.push_back({{"init", "hf-checkpoint"},
                   "--init checkpoint needs --hf-checkpoint DIR; --init random --model-config FILE "
                   "makes a model from nothing"});
  if (o.sft.init == SftInit::kCheckpoint && o.sft.model_config)
    out.push_back({{"init", "model-config"},
                   "--model-config contradicts --init checkpoint, which has a config.json of its "
                   "own; leave it out, or give --init random"});
  if (o.sft.init == SftInit::kRandom && !o.sft.model_config)
    out.push_back({{"init", "model-config"}, "--init random needs --model-config FILE"});
  if (o.sft.init == SftInit::kRandom && !o.sft.tokenizer_dir && !o.launch.hf_checkpoint)
    out.push_back({{"init", "tokenizer-dir"}, "--init random needs --tokenizer-dir DIR"});
}

void check_serve(const ParsedCommand& p, Complaints& out) {
  const ServeOptions& o = p.options.serve;
  if (!o.router && !p.options.launch.hf_checkpoint)
    out.push_back({{"hf-checkpoint", "router"},
                   "--hf-checkpoint is required: the directory of the checkpoint to serve; or "
                   "--router, to forward to other servers"});
  if (o.router && p.options.launch.hf_checkpoint)
    out.push_back({{"hf-checkpoint", "router"},
                   "--router serves no checkpoint of its own; leave --hf-checkpoint out"});
  if (!o.router && !o.worker_urls.empty())
    out.push_back({{"worker-urls"}, "--worker-urls are for --router, which is not given"});
  if (o.api_key && o.api_key->empty())
    out.push_back({{"api-key"}, "--api-key is empty; an empty key protects nothing"});
}

}  // namespace

std::vector<Complaint> check_rules(const ParsedCommand& p) {
  Complaints out;
  std::string problem;
  resolve_precision(p.options, &problem);
  if (!problem.empty()) out.push_back({{"precision", "train-fp8", "rollout-fp8"}, problem});
  check_speculation(p, out);
  if (contains(kPipeline, p.command)) check_launch(p, out);
  if (contains(kTraining, p.command)) check_training(p, out);
  if (contains(kPipeline | set_of(Command::kEval), p.command)) check_eval_pairs(p, out);
  if (contains(kTraining | set_of(Command::kSft), p.command)) check_optimizer(p, out);
  if (p.command == Command::kSft) check_sft(p, out);
  if (p.options.hub.cache_dir && p.options.hub.local_dir)
    out.push_back({{"cache-dir", "local-dir"},
                   "--cache-dir and --local-dir are two places; give one of them"});
  if (p.command == Command::kServe) check_serve(p, out);
  if (p.command == Command::kInspect) check_inspect(p, out);
  return out;
}

}  // namespace fathom::config
