// Every setting of the program as plain structs. A component receives its own struct, never the
// whole tree. Names follow the command line: RolloutOptions::rollout_batch_size is
// --rollout-batch-size and MILES_SCRIPT_ROLLOUT_BATCH_SIZE; the initialisers here are the defaults.
// What each option means, its range, and which subcommands take it stands in the table
// (table_*.cc); numbers that follow from several options are in derived.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fathom::config {

enum class Mode { kNormal, kDebugMinimal };
enum class Task { kDapoAime, kGsm8k, kDigitSum };
enum class Hardware { kAuto, kH100, kH200, kB200, kB300, kGb200, kGb300, kCpu };
enum class Conversion { kSinglePass, kTwoStep };
enum class Precision { kFp32, kParityBf16, kParityFp8, kFast };
enum class CpuKernels { kAuto, kAvx2, kAvx512 };
enum class AdvantageEstimator {
  kGrpo,
  kGspo,
  kReinforcePlusPlus,
  kReinforcePlusPlusBaseline,
  kPpo
};
enum class KlLossType { kK1, kK2, kK3, kLowVarKl };
enum class LrDecay { kConstant, kLinear, kCosine };
enum class QkvFormat { kThd, kBshd };
enum class ExportDtype { kBf16, kFp8 };
enum class ScaleDtype { kE8m0, kF32 };
enum class TensorNames { kOfficial, kSglang, kTransformers };
enum class DeviceKind { kCpu, kCuda };
enum class SftInit { kRandom, kCheckpoint };
enum class RolloutLayout { kShared, kEngine };
enum class BenchMode { kForward, kTrain, kDecode };
enum class Recompute { kNone, kLayer };

/// What the program runs on. But for the precision, changes no bits of any result.
struct RuntimeOptions {
  DeviceKind device = DeviceKind::kCpu;
  std::optional<int64_t> threads;              // unset: one per core this process may use
  CpuKernels cpu_kernels = CpuKernels::kAuto;  // kAuto: the widest the CPU has
  std::optional<Precision> precision;          // unset: by device and checkpoint; see derived.h
};

/// The launcher: which model, which data, which stages, where things lie.
struct LaunchOptions {
  std::string model_name = "DeepSeek-V4-Flash-FP8";
  std::optional<std::string> model_org;  // hub organisation; unset: by model
  std::optional<std::string> run_id;     // unset: UTC time and three random digits (derived.h)
  Mode mode = Mode::kDebugMinimal;
  Task task = Task::kDapoAime;
  bool enable_eval = true;
  std::optional<std::string> hf_checkpoint;  // a checkpoint directory that exists already
  std::string data_dir = "/root/datasets";
  std::string model_dir = "/root/models";
  std::optional<std::string> model_local_dir;  // unset: model_dir
  std::string save_dir = "/root/models";
  std::optional<std::string> recipe_dir;  // where the built-in models lie; unset: as compiled in
  Conversion conversion = Conversion::kSinglePass;
  int64_t num_nodes = 1;  // default from SLURM_JOB_NUM_NODES when that is set
  int64_t num_gpus_per_node = 8;
  int64_t num_procs = 1;                     // local ranks on a CPU
  int64_t distributed_timeout_minutes = 10;  // of one message or collective
  Hardware hardware = Hardware::kAuto;
  int64_t rollout_num_nodes = 0;  // 0: colocated
  bool enable_mtp = false;
  bool optimizer_offload = true;
  bool use_fault_tolerance = true;
  bool skip_saving = false;
  bool enable_r3 = true;
  bool train_deterministic = true;
  std::optional<bool> train_fp8, rollout_fp8;  // act only when given
  bool train_mxfp8 = false, rollout_mxfp8 = false;
  std::string output_dir = "/root/shared_data";
};

enum class HubRepoType { kModel, kDataset, kSpace };

/// The Hub client: `download`, and the stages that get models and data.
struct HubOptions {
  std::optional<std::string> repo;  // ORGANISATION/NAME
  std::vector<std::string> files;   // paths in it; none: all
  HubRepoType repo_type = HubRepoType::kModel;
  std::string revision = "main";              // branch, tag or commit
  std::vector<std::string> include, exclude;  // patterns
  std::optional<std::string> cache_dir, local_dir;
  bool force_download = false;
  std::optional<std::string> token;
  int64_t max_workers = 8;
};

/// How the model is split over ranks. On the CPU every size is 1, but for what prepare-spmd writes.
struct ParallelOptions {
  int64_t tensor_model_parallel_size = 1;
  int64_t pipeline_model_parallel_size = 1;
  int64_t context_parallel_size = 1;
  int64_t expert_model_parallel_size = 1;
  int64_t expert_tensor_parallel_size = 1;
  bool sequence_parallel = false;
  std::optional<int64_t> decoder_first_pipeline_num_layers;
  std::optional<int64_t> decoder_last_pipeline_num_layers;
  int64_t make_vocab_size_divisible_by = 128;  // prepare-spmd
};

/// Prompt files and how a row becomes tokens. Also the examples of `sft`.
struct DataOptions {
  std::optional<std::string> prompt_data;  // PATH or PATH@[a:b], .jsonl or .parquet
  std::string input_key = "input";
  std::optional<std::string> label_key;
  std::string metadata_key = "metadata";
  std::string tool_key = "tools";
  bool apply_chat_template = false;
  std::string apply_chat_template_kwargs = "{}";  // a JSON object
  bool rollout_shuffle = false;
  int64_t rollout_seed = 42;
  std::optional<int64_t> rollout_max_prompt_len;  // tokens; longer prompts are left out
  bool skip_bad_lines = false;
};

/// What one rollout generates.
struct RolloutOptions {
  std::optional<int64_t> num_rollout;  // steps of the run; beats num_epoch
  std::optional<int64_t> num_epoch;
  std::optional<int64_t> rollout_batch_size;  // prompts a step
  int64_t n_samples_per_prompt = 1;
  std::optional<int64_t> over_sampling_batch_size;  // unset: rollout_batch_size
  std::string dynamic_sampling_filter_path;         // "" or "check_reward_nonzero_std"
  double rollout_temperature = 1.0;
  double rollout_top_p = 1.0;
  int64_t rollout_top_k = -1;                       // 0 and -1: off
  std::optional<int64_t> rollout_max_response_len;  // tokens
  std::optional<int64_t> rollout_max_context_len;   // tokens, prompt and response
  std::vector<std::string> rollout_stop;            // stop strings
  std::vector<int64_t> rollout_stop_token_ids;
  bool rollout_skip_special_tokens = false;
};

enum class Admission { kEstimate, kWorstCase };
enum class SpeculativeAlgorithm { kEagle, kNextn };  // two names of the same: the MTP head

/// The rollout engine, also of `generate` and `eval`. Changes no bits of any answer. Flags are
/// --sglang-max-running-requests or --max-running-requests, and so on.
struct EngineOptions {
  int64_t max_running_requests = 64;
  int64_t chunked_prefill_size = 8192;  // prompt tokens of one step
  std::optional<int64_t> page_size;     // tokens a page of state covers; unset: fits the model
  double mem_fraction_static = 0.5;     // of the memory that is free, for states
  std::optional<int64_t> state_memory_bytes;  // the same in bytes
  Admission admission = Admission::kEstimate;
  bool disable_radix_cache = false;  // no prefix cache
  std::optional<SpeculativeAlgorithm> speculative_algorithm;
  std::optional<int64_t> speculative_num_steps, speculative_num_draft_tokens;
  int64_t speculative_eagle_topk = 1;
  std::optional<RolloutLayout> rollout_layout;  // unset: shared with one pipeline stage
  int64_t rollout_num_gpus_per_engine = 1;
  int64_t tp_size = 1, dp_size = 1, ep_size = 1;
  bool enable_dp_attention = false;
  std::string attention_backend = "compressed";
};

struct RewardOptions {
  std::string rm_type;  // "math"
};

/// Greedy evaluation during a run, and the `eval` subcommand. Unset: the rollout's value.
struct EvalOptions {
  std::optional<int64_t> eval_interval;       // steps; unset: never
  std::vector<std::string> eval_prompt_data;  // NAME PATH [NAME PATH ...]
  bool skip_eval_before_train = false;
  std::optional<std::string> eval_input_key, eval_label_key, eval_tool_key;
  int64_t n_samples_per_eval_prompt = 1;
  std::optional<double> eval_temperature;
  std::optional<double> eval_top_p;
  std::optional<int64_t> eval_top_k;
  std::optional<int64_t> eval_max_response_len;
  std::optional<int64_t> eval_max_prompt_len;
  bool eval_sampled = false;  // beside it, eval_sampled/NAME at the rollout's temperature
};

/// Advantages and the policy loss.
struct AlgorithmOptions {
  AdvantageEstimator advantage_estimator = AdvantageEstimator::kGrpo;
  double eps_clip = 0.2;
  std::optional<double> eps_clip_high;  // unset: eps_clip
  std::optional<double> eps_clip_c;     // dual clip, > 1
  bool use_kl_loss = false;
  double kl_loss_coef = 0.0;
  KlLossType kl_loss_type = KlLossType::kK1;
  double kl_coef = 0.0;
  double entropy_coef = 0.0;
  bool observe_training_entropy = false;
  bool disable_grpo_std_normalization = false;
  bool disable_rewards_normalization = false;
  bool use_rollout_routing_replay = false;  // R3
  bool use_rollout_indexer_replay = false;
};

/// Learning rate, Adam, clipping; also of `sft`.
struct OptimizerOptions {
  double lr = 1e-6;
  LrDecay lr_decay_style = LrDecay::kConstant;
  int64_t lr_warmup_iters = 0;            // optimizer steps
  std::optional<int64_t> lr_decay_iters;  // unset: the run's optimizer steps
  double min_lr = 0.0;                    // where the decay ends
  double weight_decay = 0.01;
  double adam_beta1 = 0.9, adam_beta2 = 0.999, adam_eps = 1e-8;
  double clip_grad = 1.0;  // global L2 norm; 0: no clipping
};

/// Batches and what moves in a training step.
struct TrainOptions {
  int64_t seed = 1234;
  std::optional<int64_t> global_batch_size;  // samples of an optimizer step
  std::optional<int64_t> num_steps_per_rollout;
  std::optional<int64_t> micro_batch_size;    // samples of a micro-batch; unset: by tokens
  std::optional<int64_t> max_tokens_per_gpu;  // packed tokens of a micro-batch
  bool use_dynamic_batch_size = false;        // fill them as full as they get
  bool balance_data = false;                  // equal tokens for all data-parallel ranks
  QkvFormat qkv_format = QkvFormat::kThd;     // both give the same bits
  bool moe_router_freeze_gate = true;
  bool freeze_e_score_correction_bias = true;
  double mtp_loss_scaling_factor = 0.1;  // sft
};

/// Checkpoints of a run. In a pipeline run load and save default to
/// {save_dir}/{run_id}/checkpoints. `export-hf --load` and `prepare-spmd --save` use the same two.
struct CheckpointOptions {
  std::optional<std::string> load, save, ref_load;
  std::optional<int64_t> save_interval;         // rollouts
  std::optional<int64_t> save_retain_interval;  // of the older ones keep every such step (id + 1)
  std::optional<int64_t> start_rollout_id;      // unset: from the checkpoint, else 0
  bool low_memory_resume = false;
};

struct DebugOptions {
  bool debug_rollout_only = false;
  std::optional<int64_t> debug_exit_after_rollout;  // stop after that many rollouts
  std::optional<int64_t> trace_rollouts;            // write a trace of that many rollouts
};

/// bench: a model on random weights.
struct BenchOptions {
  std::optional<std::string> model;
  BenchMode mode = BenchMode::kForward;
  int64_t tokens = 4096, batch = 1, repetitions = 5;
  Recompute recompute = Recompute::kLayer;
  std::optional<double> peak_tflops, peak_gb_per_s;
};

/// score, generate, tokenize and other one-off commands.
struct ToolOptions {
  std::optional<std::string> input, output;
  bool with_logits = false, with_gradients = false, with_mtp = false;  // score
  // generate
  double temperature = 1.0, top_p = 1.0;
  int64_t top_k = 0;
  int64_t max_new_tokens = 128;
  int64_t num_samples = 1;
  bool ignore_eos = false;
  std::vector<std::string> stop;
  // inspect
  std::optional<std::string> path;
  std::vector<std::string> diff;  // two paths, or one to compare `path` with
  bool verify = false;
  bool json = false;
  // download, train and full-train
  bool dry_run = false;
};

/// plan, and what --dry-run needs to know beside the recipe.
struct PlanOptions {
  std::optional<int64_t> sequence_tokens;  // of a sample; unset: longest prompt and response
  std::optional<double> device_memory_gb, host_memory_gb;  // of a rank; unset: by --hardware
  bool bf16_gradients = false, bf16_moments = false;
};

/// prepare-single, prepare-spmd and export-hf.
struct ConvertOptions {
  std::optional<std::string> input_fp8_hf_path, output_bf16_hf_path;
  bool plan_only = false;
  ExportDtype dtype = ExportDtype::kBf16;
  ScaleDtype scale_dtype = ScaleDtype::kE8m0;
  std::optional<std::string> source;  // the original checkpoint
  TensorNames names = TensorNames::kOfficial;
};

/// sft: rows of prompt_data hold input_key (a string or messages) and response_key (the answer).
struct SftOptions {
  SftInit init = SftInit::kCheckpoint;       // kCheckpoint: from --hf-checkpoint
  std::optional<std::string> model_config;   // config.json of a model made from nothing
  std::optional<std::string> tokenizer_dir;  // tokenizer.json and its companions for such a model
  std::string response_key = "response";
  int64_t sft_steps = 600;
  bool append_eos = true;  // the end token is learned too
};

enum class ChatThinking { kThinking, kChat };
enum class RoutingPolicy { kCacheAware, kRoundRobin, kLeastLoaded, kSticky };

/// serve: the HTTP server in front of an engine, or with `router` in front of other servers.
struct ServeOptions {
  std::string host = "127.0.0.1";  // any other address needs an API key
  int64_t port = 30000;            // 0: one that is free
  std::optional<std::string> api_key;
  std::optional<std::string> served_model_name;          // unset: the checkpoint directory's name
  ChatThinking thinking_mode = ChatThinking::kThinking;  // of chats that do not say
  std::optional<int64_t> random_seed;  // of requests without a seed; unset: another one every start
  bool incremental_streaming_output = false;
  int64_t stream_interval = 1;  // tokens
  int64_t max_queued_requests = 1024;
  int64_t max_body_mb = 64;
  int64_t max_connections = 2048;
  int64_t http_threads = 2;
  int64_t request_timeout = 14'400;             // seconds
  int64_t drain_timeout = 600;                  // seconds
  std::optional<int64_t> health_check_timeout;  // seconds; unset: each has its own default

  bool router = false;
  std::vector<std::string> worker_urls;
  std::optional<std::string> worker_api_key;
  RoutingPolicy policy = RoutingPolicy::kCacheAware;
  int64_t health_check_interval = 15;    // seconds
  int64_t health_failure_threshold = 3;  // checks
  int64_t health_success_threshold = 1;  // checks
  int64_t retry_max_retries = 5;
  int64_t cb_failure_threshold = 10;  // requests
  int64_t cb_timeout = 60;            // seconds
};

/// Flags of the recipe's command line that have one possible value, or no effect, in this program;
/// accepted so that the recipe's lines work. No component reads them.
struct AcceptedOptions {
  bool colocate = true;
  std::string recompute_granularity = "full", recompute_method = "uniform";
  int64_t recompute_num_layers = 1;
  double attention_dropout = 0.0, hidden_dropout = 0.0;
  bool attention_softmax_in_fp32 = true, accumulate_allreduce_grads_in_fp32 = true;
  bool deterministic_mode = true;
  std::string optimizer = "adam";
  bool optimizer_cpu_offload = false, use_precision_aware_optimizer = false;
  bool overlap_cpu_optimizer_d2h_h2d = false;
  bool offload = false, offload_train = false, offload_rollout = false;
  std::optional<int64_t> update_weight_buffer_size, train_memory_margin_bytes;
  std::optional<int64_t> rollout_health_check_interval, rollout_health_check_timeout;
  std::optional<int64_t> sglang_server_concurrency;
  bool allgather_cp = true;
  std::optional<std::string> fp8_gemm_backend, moe_runner_backend, moe_a2a_backend, deepep_mode;
  std::optional<int64_t> cuda_graph_max_bs;
  std::optional<int64_t> router_health_success_threshold, router_health_failure_threshold;
  std::optional<int64_t> router_health_check_interval_secs;
  std::optional<int64_t> data_pad_size_multiplier, log_probs_chunk_size;
};

/// Where further options come from. Consumed by the parser.
struct SourceOptions {
  std::optional<std::string> config;
  std::string extra_args;
};

/// Everything. Components take the parts.
struct Options {
  RuntimeOptions runtime;
  LaunchOptions launch;
  HubOptions hub;
  ParallelOptions parallel;
  DataOptions data;
  RolloutOptions rollout;
  EngineOptions engine;
  RewardOptions reward;
  EvalOptions eval;
  AlgorithmOptions algorithm;
  OptimizerOptions optimizer;
  TrainOptions train;
  CheckpointOptions checkpoint;
  DebugOptions debug;
  ToolOptions tool;
  BenchOptions bench;
  PlanOptions plan;
  ConvertOptions convert;
  SftOptions sft;
  ServeOptions serve;
  AcceptedOptions accepted;
  SourceOptions source;
};

}  // namespace fathom::config
