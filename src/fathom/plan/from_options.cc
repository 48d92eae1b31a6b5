#include "fathom/plan/from_options.h"

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/config/derived.h"
#include "fathom/model/named_models.h"
#include "fathom/plan/model_shapes.h"

namespace fathom {
namespace {

constexpr int64_t kPromptTokens = 1024, kResponseTokens = 4096;

void set_model(const config::Options& o, PlanRequest* r) {
  const std::string& name = o.bench.model.value_or(o.launch.model_name);
  r->model_name = name;
  if (o.bench.model) {
    const auto shape = named_shape(name);
    r->config = shape ? *shape : named_or_stored_model(name);
  } else if (o.launch.hf_checkpoint) {
    r->config = load_model_config(*o.launch.hf_checkpoint);
  } else if (const auto shape = named_shape(name)) {
    r->config = *shape;
  } else {
    throw ConfigError(str_cat("--model-name ", name,
                              ": its sizes are not known here\n  fix: give --model or "
                              "--hf-checkpoint with its config.json"));
  }
}

bool is_on_cpu(const config::ParsedCommand& command) {
  const config::LaunchOptions& o = command.options.launch;
  if (o.hardware != config::Hardware::kAuto) return o.hardware == config::Hardware::kCpu;
  return command.is_given("num-procs") || o.model_name == config::kTiny;
}

std::string machine_name(const config::ParsedCommand& command) {
  switch (command.options.launch.hardware) {
    case config::Hardware::kH100:
      return "H100";
    case config::Hardware::kH200:
      return "H200";
    case config::Hardware::kB200:
      return "B200";
    case config::Hardware::kB300:
      return "B300";
    case config::Hardware::kGb200:
      return "GB200";
    case config::Hardware::kGb300:
      return "GB300";
    case config::Hardware::kCpu:
      return "CPU";
    case config::Hardware::kAuto:
      break;
  }
  return is_on_cpu(command) ? "CPU" : "H200";
}

void set_machine(const config::ParsedCommand& command, PlanRequest* r) {
  const config::PlanOptions& o = command.options.plan;
  r->machine = *find_machine(machine_name(command));
  if (o.device_memory_gb) {
    r->machine.device_bytes = static_cast<int64_t>(*o.device_memory_gb * 1e9);
  }
  if (o.host_memory_gb) r->machine.host_bytes = static_cast<int64_t>(*o.host_memory_gb * 1e9);
}

void set_layout(const config::ParsedCommand& command, PlanRequest* r) {
  const config::Options& o = command.options;
  const config::ParallelOptions& p = o.parallel;
  const bool on_cpu = r->machine.is_cpu;
  const int64_t nodes = o.launch.num_nodes - o.launch.rollout_num_nodes;
  r->ranks_per_node = static_cast<int>(on_cpu ? o.launch.num_procs : o.launch.num_gpus_per_node);
  const auto size = [](int64_t n) { return static_cast<int>(std::min<int64_t>(n, 1 << 20)); };
  const dist::Mesh mesh(size(nodes * r->ranks_per_node), size(p.tensor_model_parallel_size),
                        size(p.context_parallel_size), size(p.expert_model_parallel_size),
                        size(p.expert_tensor_parallel_size), size(p.pipeline_model_parallel_size));
  const bool is_fp8 = o.runtime.precision || o.launch.train_fp8 || o.launch.rollout_fp8 || on_cpu
                          ? config::derive(o).train_precision == Precision::kParityFp8
                          : true;  // what a GPU computes an FP8 checkpoint in
  r->layout = {.mesh = mesh.shape(),
               .first_stage_layers = p.decoder_first_pipeline_num_layers,
               .last_stage_layers = p.decoder_last_pipeline_num_layers,
               .precision = is_fp8 ? Precision::kParityFp8 : config::derive(o).train_precision};
  r->sequence_parallel = p.sequence_parallel;
}

void set_batch(const config::Options& o, PlanRequest* r) {
  const config::RolloutOptions& rollout = o.rollout;
  BatchSizes& b = r->batch;
  const int64_t all = rollout.rollout_batch_size.value_or(32) * rollout.n_samples_per_prompt;
  b.samples = o.train.global_batch_size.value_or(all / o.train.num_steps_per_rollout.value_or(1));
  b.response_tokens = rollout.rollout_max_response_len.value_or(kResponseTokens);
  const int64_t prompt = o.data.rollout_max_prompt_len.value_or(
      std::min(kPromptTokens, r->config.max_position_embeddings / 2));
  b.sequence_tokens = o.plan.sequence_tokens.value_or(
      rollout.rollout_max_context_len.value_or(prompt + b.response_tokens));
  b.sequence_tokens = std::min(b.sequence_tokens, r->config.max_position_embeddings);
  b.response_tokens = std::min(b.response_tokens, b.sequence_tokens - 1);
  const int64_t by_tokens = std::max<int64_t>(
      1, o.train.max_tokens_per_gpu.value_or(8192) * r->layout.mesh.cp / b.sequence_tokens);
  const bool packs = o.train.use_dynamic_batch_size || !o.train.micro_batch_size;
  b.samples_per_micro_batch = packs ? by_tokens : *o.train.micro_batch_size;
  const int64_t of_rank = (b.samples + r->layout.mesh.dp - 1) / r->layout.mesh.dp;
  b.samples_per_micro_batch = std::min(b.samples_per_micro_batch, std::max<int64_t>(1, of_rank));
}

void set_engine(const config::Options& o, PlanRequest* r) {
  const config::EngineOptions& e = o.engine;
  r->engine = {.shares_layout = config::derive(o).rollout_layout == config::RolloutLayout::kShared,
               .tp = static_cast<int>(e.tp_size),
               .dp = static_cast<int>(e.dp_size),
               .ep = static_cast<int>(e.ep_size),
               .dp_attention = e.enable_dp_attention,
               .max_running_requests = e.max_running_requests,
               .page_size = e.page_size.value_or(0)};
}

}  // namespace

PlanRequest plan_request(const config::ParsedCommand& command) {
  const config::Options& o = command.options;
  PlanRequest r;
  set_model(o, &r);
  set_machine(command, &r);
  set_layout(command, &r);
  set_batch(o, &r);
  set_engine(o, &r);
  const std::string& granularity = o.accepted.recompute_granularity;
  if (granularity != "full" && granularity != "none") {
    throw ConfigError(str_cat("--recompute-granularity must be full or none, got ", granularity));
  }
  r.recompute = granularity == "full";
  // The trainer's flag, and the launcher's that stands for it and beats it where it is given.
  const bool offloads = command.is_given("optimizer-offload")
                            ? o.launch.optimizer_offload
                            : o.launch.optimizer_offload || o.accepted.optimizer_cpu_offload;
  r.optimizer_on_host = !r.machine.is_cpu && offloads;
  r.gradient_bytes = o.plan.bf16_gradients ? 2 : 4;
  r.moment_bytes = o.plan.bf16_moments ? 2 : 4;
  r.freezes_gate = o.train.moe_router_freeze_gate;
  check_layout(r.config, r.layout);
  return r;
}

}  // namespace fathom
