// Options of the recipe's trainer and launcher whose feature is not built: known by name, so that
// they are refused with a sentence instead of as unknown.
#include "fathom/config/table.h"

namespace fathom::config {

void describe_unbuilt_options(OptionTable& table) {
  table.group("Not built", kPipeline);
  table.add_unbuilt(
      {"num-layers",
       "hidden-size",
       "ffn-hidden-size",
       "moe-ffn-hidden-size",
       "moe-shared-expert-intermediate-size",
       "num-attention-heads",
       "q-lora-rank",
       "kv-lora-rank",
       "qk-head-dim",
       "qk-pos-emb-head-dim",
       "v-head-dim",
       "num-experts",
       "vocab-size",
       "moe-router-topk",
       "moe-router-topk-scaling-factor",
       "dsv4-o-groups",
       "dsv4-o-lora-rank",
       "dsv4-compress-ratios",
       "dsv4-compress-rope-theta",
       "dsv4-hc-mult",
       "dsv4-hc-sinkhorn-iters",
       "dsv4-n-hash-layers",
       "dsv4-window-size",
       "dsa-indexer-topk",
       "dsa-indexer-n-heads",
       "dsa-indexer-head-dim",
       "rotary-base",
       "rotary-scaling-factor",
       "norm-epsilon",
       "original-max-position-embeddings",
       "spec",
       "mtp-num-layers"},
      "The model's shape is read from the checkpoint's config.json and cannot be given here.");
  table.add_unbuilt({"megatron-path", "transformer-impl", "fp8-format", "fp8-recipe",
                     "te-precision-config-file", "bf16", "fp16"},
                    "There is no Megatron or Transformer Engine here; --precision says how "
                    "products are computed.");
  table.add_unbuilt({"cp-size"}, "Use --context-parallel-size.");
  table.add_unbuilt({"rollout-num-gpus", "actor-num-nodes", "actor-num-gpus-per-node",
                     "critic-num-nodes", "critic-num-gpus-per-node"},
                    "These follow from --num-nodes, --num-gpus-per-node and --rollout-num-nodes.");
  table.add_unbuilt(
      {"dump-details", "debug-train-run-id", "debug-train-rollout-id", "debug-data-root",
       "debug-train-only", "save-debug-rollout-data", "load-debug-rollout-data",
       "load-debug-rollout-data-subsample", "save-debug-train-data", "save-debug-trajectory-data",
       "debug-disable-optimizer", "debug-deterministic-collective"},
      "Dumps and their replay are not built yet; the samples of every step are in the run's "
      "rollout/ directory.");
  table.add_unbuilt({"enable-mis", "use-tis", "tis-clip", "tis-clip-low",
                     "custom-tis-function-path", "get-mismatch-metrics", "use-opsm", "opsm-delta"},
                    "Importance sampling against a mismatch is not built: rollout and trainer "
                    "compute the same log-probs.");
  table.add_unbuilt({"use-routing-replay", "use-indexer-replay"},
                    "Replay between two forwards of the trainer is not built; it computes the same "
                    "routes and picks each time. --use-rollout-routing-replay replays rollout's.");
  table.add_unbuilt({"value-clip", "gamma", "lambd", "normalize-advantages", "use-unbiased-kl",
                     "use-rollout-entropy", "use-rollout-logprobs", "skip-actor-forward-only"},
                    "It belongs to an estimator or a loss that is not built yet.");
  table.add_unbuilt({"ref-ckpt-step", "ref-update-interval", "keep-old-actor",
                     "update-weights-interval", "reset-optimizer-states"},
                    "A reference or old model beside the trained one is not built yet.");
  table.add_unbuilt(
      {"loss-type", "calculate-per-token-loss", "custom-pg-loss-reducer-function-path"},
      "The policy loss with its mean over samples is the only one that is built; "
      "`fathom sft` trains supervised.");
  table.add_unbuilt({"custom-rm-path", "rm-url", "group-rm", "reward-key", "eval-reward-key",
                     "custom-reward-post-process-path"},
                    "Rewards of one's own, remote and group rewards are not built yet.");
  table.add_unbuilt(
      {"rollout-function-path", "custom-generate-function-path", "data-source-path",
       "custom-convert-samples-to-train-data-path", "custom-rollout-log-function-path",
       "custom-eval-rollout-log-function-path", "rollout-data-postprocess-path",
       "rollout-sample-filter-path", "rollout-all-samples-process-path", "buffer-filter-path",
       "eval-function-path", "custom-config-path"},
      "Python functions cannot be plugged into this program.");
  table.add_unbuilt({"partial-rollout", "mask-offpolicy-in-partial-rollout", "fully-async",
                     "max-weight-staleness", "async-max-concurrent-samples",
                     "async-data-buffer-capacity-factor", "rollout-submission-granularity"},
                    "Partial and asynchronous rollout are not built yet.");
  table.add_unbuilt({"eval-config", "eval-min-new-tokens", "eval-max-context-len", "eval-num-gpus",
                     "eval-hf-dir"},
                    "Evaluation is described by --eval-prompt-data and the other --eval options; "
                    "this one is not built yet.");
  table.add_unbuilt({"multimodal-keys", "chat-template-path"},
                    "Prompts are text in DeepSeek-V4's own chat encoding; others are not built.");
  table.add_unbuilt({"enable-mtp-training", "use-opd", "lora-rank"},
                    "MTP training in RL, distillation and LoRA are not built yet.");
  table.add_unbuilt({"balance-by-flops", "allow-partial-train-step",
                     "use-dynamic-global-batch-size", "log-probs-max-tokens-per-gpu"},
                    "Samples are always packed, up to --max-tokens-per-gpu tokens; this option is "
                    "not built.");
  table.add_unbuilt({"custom-megatron-post-save-hook-path"}, "There is no Megatron to hook into.");
  table.add_unbuilt({"async-save", "no-save-optim", "save-hf", "save-trigger-sentinel"},
                    "Checkpoints are saved whole, between two steps; `fathom export-hf` writes "
                    "Hugging Face files. This option is not built yet.");
  table.add_unbuilt(
      {"pause-generation-mode", "update-weight-transfer-mode", "check-weight-update-equal",
       "check-weight-update-selector", "check-weight-update-skip-list",
       "check-weight-update-allow-quant-error", "debug-skip-weight-update"},
      "Rollout reads the trainer's own weights: nothing is transferred.");
  table.add_unbuilt(
      {"use-wandb", "wandb-project", "wandb-group", "wandb-key", "use-mlflow", "use-prometheus"},
      "Metrics go to metrics.jsonl and TensorBoard; other places are not built yet.");
  table.add_unbuilt({"cuda-core-dump", "offload-train-target", "offload-rollout-level",
                     "stream-optimizer-state-to-disk", "rematerialize-param-from-master-weight"},
                    "This build has no GPU code.");
  table.add_unbuilt({"extra-env-vars", "train-env-vars"},
                    "There are no other processes to give variables to; set them for this one.");
  table.add_unbuilt(
      {"rollout-external", "rollout-external-engine-addrs", "sglang-config", "sglang-router-ip",
       "sglang-router-port", "prefill-num-servers", "ft-components", "control-server-port"},
      "Rollout engines in other processes are not built yet.");
}

}  // namespace fathom::config
