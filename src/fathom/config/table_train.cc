// Rows of the trainer: algorithm, optimizer, batches, layout, checkpoints.
#include "fathom/config/table.h"

namespace fathom::config {
namespace {

constexpr CommandSet kTrains = kPipeline | set_of(Command::kSft);

void describe_algorithm(OptionTable& table, Options& options) {
  AlgorithmOptions& o = options.algorithm;
  table.group("Algorithm", kPipeline);
  table
      .add_choice<AdvantageEstimator>(
          "advantage-estimator", &o.advantage_estimator,
          {{"grpo", AdvantageEstimator::kGrpo},
           {"gspo", AdvantageEstimator::kGspo},
           {"reinforce_plus_plus", AdvantageEstimator::kReinforcePlusPlus},
           {"reinforce_plus_plus_baseline", AdvantageEstimator::kReinforcePlusPlusBaseline},
           {"ppo", AdvantageEstimator::kPpo}},
          "how rewards become advantages")
      .built_only({"grpo"}, "Only grpo is built so far.");
  table.add("eps-clip", &o.eps_clip, "the policy ratio is clipped below at 1 minus this")
      .at_least(0)
      .below(1);
  table.add("eps-clip-high", &o.eps_clip_high, "and above at 1 plus this; unset: --eps-clip")
      .at_least(0);
  table.add("eps-clip-c", &o.eps_clip_c, "dual clip for negative advantages; unset: off").above(1);
  table.add("use-kl-loss", &o.use_kl_loss, "add the KL to a reference model to the loss")
      .built_only({"false"}, "A reference model is not built yet, so there is no KL loss.");
  table.add("kl-loss-coef", &o.kl_loss_coef, "weight of that KL")
      .at_least(0)
      .built_only({"0.0"}, "A reference model is not built yet, so there is no KL loss.");
  table.add_choice<KlLossType>("kl-loss-type", &o.kl_loss_type,
                               {{"k1", KlLossType::kK1},
                                {"k2", KlLossType::kK2},
                                {"k3", KlLossType::kK3},
                                {"low_var_kl", KlLossType::kLowVarKl}},
                               "estimate of that KL");
  table.add("kl-coef", &o.kl_coef, "KL penalty inside the reward")
      .built_only({"0.0"}, "A reference model is not built yet, so there is no KL penalty.");
  table.add("entropy-coef", &o.entropy_coef, "weight of the entropy bonus").at_least(0);
  table.add("observe-training-entropy", &o.observe_training_entropy,
            "report the entropy although its weight is 0");
  table.add("disable-grpo-std-normalization", &o.disable_grpo_std_normalization,
            "do not divide advantages by the rewards' deviation");
  table.add("disable-rewards-normalization", &o.disable_rewards_normalization,
            "use rewards as advantages, as they are");
  table.add("use-rollout-routing-replay", &o.use_rollout_routing_replay,
            "R3: the trainer uses the experts that rollout chose");
  table
      .add("use-rollout-indexer-replay", &o.use_rollout_indexer_replay,
           "the trainer uses the keys that rollout's indexer picked")
      .built_only({"false"},
                  "Replay of the indexer's picks is not built yet; both sides compute "
                  "the same picks.");
}

void describe_optimizer(OptionTable& table, Options& options) {
  OptimizerOptions& o = options.optimizer;
  table.group("Optimizer", kTrains);
  table.add("lr", &o.lr, "learning rate").at_least(0);
  table.add_choice<LrDecay>("lr-decay-style", &o.lr_decay_style,
                            {{"constant", LrDecay::kConstant},
                             {"linear", LrDecay::kLinear},
                             {"cosine", LrDecay::kCosine}},
                            "course of the learning rate after the warm-up");
  table.add("lr-warmup-iters", &o.lr_warmup_iters, "optimizer steps of linear warm-up").at_least(0);
  table
      .add("lr-decay-iters", &o.lr_decay_iters,
           "optimizer step at which --min-lr is reached; unset: the run's last")
      .at_least(1);
  table.add("min-lr", &o.min_lr, "learning rate at the end of the decay").at_least(0);
  table.add("weight-decay", &o.weight_decay, "of trained tensors with two or more dimensions")
      .at_least(0);
  table.add("adam-beta1", &o.adam_beta1, "Adam's first decay").at_least(0).below(1);
  table.add("adam-beta2", &o.adam_beta2, "Adam's second decay").at_least(0).below(1);
  table.add("adam-eps", &o.adam_eps, "Adam's epsilon").above(0);
  table.add("clip-grad", &o.clip_grad, "largest L2 norm of the whole gradient; 0: no clipping")
      .at_least(0);
}

void describe_batches(OptionTable& table, Options& options) {
  TrainOptions& o = options.train;
  const CommandSet trains = kTrains;
  table.group("Training step", kPipeline);
  table.add("seed", &o.seed, "seed of what is random and has no seed of its own")
      .at_least(0)
      .for_commands(trains | set_of(Command::kGenerate, Command::kBench));
  table
      .add("global-batch-size", &o.global_batch_size,
           "samples of an optimizer step; unset: a rollout's samples / --num-steps-per-rollout")
      .at_least(1)
      .for_commands(trains);
  table
      .add("num-steps-per-rollout", &o.num_steps_per_rollout,
           "optimizer steps on the samples of a rollout; unset: 1")
      .at_least(1);
  table
      .add("micro-batch-size", &o.micro_batch_size,
           "samples computed at a time; unset: as many as --max-tokens-per-gpu takes. Results do "
           "not depend on it")
      .at_least(1)
      .not_hashed();
  table
      .add("max-tokens-per-gpu", &o.max_tokens_per_gpu,
           "tokens packed into a micro-batch, of a longer sample that alone; unset: 8192. Results "
           "do not depend on it")
      .at_least(1)
      .for_commands(trains)
      .not_hashed();
  table
      .add("use-dynamic-batch-size", &o.use_dynamic_batch_size,
           "fill micro-batches up to --max-tokens-per-gpu, whatever --micro-batch-size says")
      .not_hashed();
  table.add("balance-data", &o.balance_data,
            "deal samples to data-parallel ranks by their tokens, in place of runs of neighbours");
  table
      .add_choice<QkvFormat>("qkv-format", &o.qkv_format,
                             {{"thd", QkvFormat::kThd}, {"bshd", QkvFormat::kBshd}},
                             "both are computed packed and give the same bits")
      .not_hashed();
  table.add("moe-router-freeze-gate", &o.moe_router_freeze_gate,
            "the router's weights do not move");
  table
      .add("freeze-e-score-correction-bias", &o.freeze_e_score_correction_bias,
           "the experts' bias does not move, which every save asserts")
      .built_only({"true"}, "Updating the experts' bias is not built: it is always frozen.");
  table
      .add("mtp-loss-scaling-factor", &o.mtp_loss_scaling_factor,
           "weight of the MTP block's own loss")
      .at_least(0)
      .for_commands(set_of(Command::kSft));
}

void describe_layout(OptionTable& table, Options& options) {
  ParallelOptions& o = options.parallel;
  table.group("Layout", kPipeline);
  // A conversion writes for any layout, and plan takes any; these compute in it.
  const CommandSet computes = kTraining | set_of(Command::kSft, Command::kScore);
  const auto size = [&](const std::string& name, int64_t* field, const std::string& help) {
    table.add(name, field, help).at_least(1).for_commands(kPipeline | computes);
  };
  size("tensor-model-parallel-size", &o.tensor_model_parallel_size, "ranks that share a product");
  size("pipeline-model-parallel-size", &o.pipeline_model_parallel_size,
       "ranks that share the layers");
  size("context-parallel-size", &o.context_parallel_size, "ranks that share a sequence");
  size("expert-model-parallel-size", &o.expert_model_parallel_size, "ranks that share the experts");
  size("expert-tensor-parallel-size", &o.expert_tensor_parallel_size, "ranks that share an expert");
  table
      .add("sequence-parallel", &o.sequence_parallel,
           "the tensor parallel ranks also share what lies between the products: norms and streams")
      .for_commands(kPipeline | computes);
  table
      .add("decoder-first-pipeline-num-layers", &o.decoder_first_pipeline_num_layers,
           "layers of the first pipeline stage")
      .at_least(1)
      .for_commands(kPipeline | computes)
      .planned();
  table
      .add("decoder-last-pipeline-num-layers", &o.decoder_last_pipeline_num_layers,
           "layers of the last pipeline stage")
      .at_least(1)
      .for_commands(kPipeline | computes)
      .planned();
  table
      .add(
          "make-vocab-size-divisible-by", &o.make_vocab_size_divisible_by,
          "ranks share a vocabulary that is padded to a multiple of this times the tensor parallel "
          "size; the padding is not stored")
      .at_least(1)
      .for_commands(kPipeline)
      .not_hashed();
}

void describe_checkpoint(OptionTable& table, Options& options) {
  CheckpointOptions& o = options.checkpoint;
  table.group("Checkpoints", kPipeline);
  table
      .add("load", &o.load,
           "training checkpoints to resume from; of a run {save-dir}/{run-id}/checkpoints")
      .path()
      .for_commands(kPipeline | set_of(Command::kExportHf))
      .required_for(set_of(Command::kExportHf))
      .not_hashed();
  table
      .add("save", &o.save,
           "where checkpoints go, by default as --load; of prepare-spmd the torch_dist directory")
      .path()
      .not_hashed();
  table
      .add("ref-load", &o.ref_load,
           "torch_dist weights that a fresh run starts from; unset: those of prepare-spmd")
      .path();
  table
      .add("save-interval", &o.save_interval,
           "save after every so many steps and at the end; unset: never")
      .at_least(1)
      .not_hashed();
  table
      .add("save-retain-interval", &o.save_retain_interval,
           "of older checkpoints keep those of every so many steps; unset: all")
      .at_least(1)
      .not_hashed();
  table.add("start-rollout-id", &o.start_rollout_id, "step to begin with; unset: by the checkpoint")
      .at_least(0)
      .built_only({}, "Starting at a given step is not built yet; a run resumes by its --run-id.")
      .not_hashed();
  table.add("low-memory-resume", &o.low_memory_resume, "load the optimizer's state piece by piece")
      .without_effect("the optimizer's state is always read piece by piece.")
      .not_hashed();

  DebugOptions& d = options.debug;
  table.group("Debugging", kPipeline);
  table.add("debug-rollout-only", &d.debug_rollout_only, "roll out and grade, do not train");
  table
      .add("debug-exit-after-rollout", &d.debug_exit_after_rollout,
           "stop after so many steps, leaving the run unfinished")
      .at_least(1)
      .not_hashed();
  table
      .add("trace-rollouts", &d.trace_rollouts,
           "write where the time of the first steps goes, of all ranks, to trace.json in the run's "
           "directory, for ui.perfetto.dev")
      .at_least(1)
      .not_hashed();
}

}  // namespace

void describe_train_options(OptionTable& table, Options& options) {
  describe_algorithm(table, options);
  describe_optimizer(table, options);
  describe_batches(table, options);
  describe_layout(table, options);
  describe_checkpoint(table, options);
}

}  // namespace fathom::config
