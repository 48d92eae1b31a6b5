// Rows of the recipe's flags that have one possible value, or no effect, in this program.
#include "fathom/config/table.h"

namespace fathom::config {

void describe_accepted_options(OptionTable& table, Options& options) {
  AcceptedOptions& o = options.accepted;
  table.group("Accepted for the recipe's sake", kPipeline);
  const auto only = [&](const std::string& name, Field field, const std::string& value,
                        const std::string& help, const std::string& sentence) -> Option& {
    return table.add(name, std::move(field), help).built_only({value}, sentence).not_hashed();
  };
  only("colocate", &o.colocate, "true", "trainer and rollout share their ranks",
       "Rollout on ranks of its own is not built yet.");
  only("recompute-granularity", &o.recompute_granularity, "full",
       "what backward recomputes; of plan also none",
       "Backward always recomputes whole layers, one at a time.")
      .planned();
  only("recompute-method", &o.recompute_method, "uniform", "which layers it recomputes",
       "Backward always recomputes whole layers, one at a time.");
  only("recompute-num-layers", &o.recompute_num_layers, "1", "layers recomputed at a time",
       "Backward always recomputes whole layers, one at a time.");
  only("attention-dropout", &o.attention_dropout, "0.0", "dropout of attention weights",
       "Dropout is not built: rollout and trainer would differ.");
  only("hidden-dropout", &o.hidden_dropout, "0.0", "dropout of hidden states",
       "Dropout is not built: rollout and trainer would differ.");
  only("attention-softmax-in-fp32", &o.attention_softmax_in_fp32, "true", "softmax in fp32",
       "It is always in fp32.");
  only("accumulate-allreduce-grads-in-fp32", &o.accumulate_allreduce_grads_in_fp32, "true",
       "gradients in fp32", "They are always in fp32.");
  only("deterministic-mode", &o.deterministic_mode, "true", "the same bits from run to run",
       "Results are always the same bits.");
  only("optimizer", &o.optimizer, "adam", "the optimizer", "Only adam is built.");

  const auto no_effect = [&](const std::string& name, Field field, const std::string& help,
                             const std::string& sentence) -> Option& {
    return table.add(name, std::move(field), help).without_effect(sentence).not_hashed();
  };
  const std::string host = "on the CPU the optimizer's state is in host memory anyway, in fp32.";
  no_effect("optimizer-cpu-offload", &o.optimizer_cpu_offload, "optimizer in host memory", host)
      .planned();
  no_effect("use-precision-aware-optimizer", &o.use_precision_aware_optimizer,
            "optimizer state in other formats", host);
  no_effect("overlap-cpu-optimizer-d2h-h2d", &o.overlap_cpu_optimizer_d2h_h2d,
            "overlap its transfers", host);
  const std::string one_copy = "trainer and rollout share one copy of the weights in host memory.";
  no_effect("offload", &o.offload, "release device memory between phases", one_copy);
  no_effect("offload-train", &o.offload_train, "release the trainer's memory", one_copy);
  no_effect("offload-rollout", &o.offload_rollout, "release the engine's memory", one_copy);
  no_effect("update-weight-buffer-size", &o.update_weight_buffer_size, "bytes sent at a time",
            one_copy);
  no_effect("train-memory-margin-bytes", &o.train_memory_margin_bytes, "device memory kept free",
            one_copy);
  const std::string one_process = "trainer and engine are one process.";
  no_effect("rollout-health-check-interval", &o.rollout_health_check_interval,
            "seconds between looks at the engines", one_process);
  no_effect("rollout-health-check-timeout", &o.rollout_health_check_timeout,
            "seconds an engine has to answer", one_process);
  no_effect("sglang-server-concurrency", &o.sglang_server_concurrency, "requests under way",
            "--sglang-max-running-requests limits what runs at a time.");
  only("allgather-cp", &o.allgather_cp, "true", "contiguous parts of a sequence",
       "V4's context parallelism is contiguous; there is no other.");
  const std::string own_kernels = "there is one kernel for each product.";
  no_effect("sglang-fp8-gemm-backend", &o.fp8_gemm_backend, "kernels of FP8 products", own_kernels);
  no_effect("sglang-moe-runner-backend", &o.moe_runner_backend, "kernels of experts", own_kernels);
  no_effect("sglang-moe-a2a-backend", &o.moe_a2a_backend, "how rows get to experts", own_kernels);
  no_effect("sglang-deepep-mode", &o.deepep_mode, "variant of that", own_kernels);
  no_effect("sglang-cuda-graph-max-bs", &o.cuda_graph_max_bs, "largest batch of a recorded graph",
            "no answer depends on how a step is launched, and this build records no graphs.");
  no_effect("router-health-success-threshold", &o.router_health_success_threshold,
            "good checks until an engine counts as well", one_process);
  no_effect("router-health-failure-threshold", &o.router_health_failure_threshold,
            "bad checks until it counts as ill", one_process);
  no_effect("router-health-check-interval-secs", &o.router_health_check_interval_secs,
            "seconds between checks", one_process);
  const std::string padding =
      "samples are packed without padding, and rows are cut by the kernels.";
  no_effect("data-pad-size-multiplier", &o.data_pad_size_multiplier, "padding of a micro-batch",
            padding);
  no_effect("log-probs-chunk-size", &o.log_probs_chunk_size, "rows of the head at a time", padding);
}

}  // namespace fathom::config
