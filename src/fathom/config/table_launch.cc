// Rows of the launcher: model, data, stages, places, machines; and what the program runs on.
#include "fathom/config/table.h"

namespace fathom::config {
namespace {

const char* const kOneNode =
    "Several nodes are not built yet: this build runs on one node, in one process.";

void describe_runtime(OptionTable& table, Options& options) {
  RuntimeOptions& o = options.runtime;
  table.group("What it runs on", kAllCommands);
  table.add("threads", &o.threads, "CPU threads; unset: one per core. Results do not depend on it")
      .at_least(1)
      .at_most(1024)
      .not_hashed();
  table
      .add_choice<CpuKernels>("cpu-kernels", &o.cpu_kernels,
                              {{"auto", CpuKernels::kAuto},
                               {"avx2", CpuKernels::kAvx2},
                               {"avx512", CpuKernels::kAvx512}},
                              "instruction set of the kernels. Results do not depend on it")
      .not_hashed();
  table
      .add_choice<DeviceKind>("device", &o.device,
                              {{"cpu", DeviceKind::kCpu}, {"cuda", DeviceKind::kCuda}},
                              "where the model computes. Results do not depend on it")
      .not_hashed();
  table.add_choice<Precision>(
      "precision", &o.precision,
      {{"fp32", Precision::kFp32},
       {"parity-bf16", Precision::kParityBf16},
       {"parity-fp8", Precision::kParityFp8},
       {"fast", Precision::kFast}},
      "number formats of products and caches; unset: fp32 on the CPU. fast: "
      "trainer and rollout in different ones, see --train-fp8");
}

void describe_places(OptionTable& table, Options& options) {
  LaunchOptions& o = options.launch;
  const CommandSet pipeline = kPipeline;
  const CommandSet reads_model =
      kPipeline | set_of(Command::kSft, Command::kEval, Command::kGenerate, Command::kScore,
                         Command::kTokenize, Command::kExportHf, Command::kServe);
  table.group("Model and places", pipeline);
  table
      .add("model-name", &o.model_name,
           "DeepSeek-V4-Flash-FP8, DeepSeek-V4-Flash-FP8-4layer, DeepSeek-V4-Pro-FP8 or "
           "DeepSeek-V4-Tiny-FP8; any name with --hf-checkpoint, where it only names the outputs, "
           "or "
           "with --model-org, whose model is downloaded")
      .for_commands(reads_model);
  table.add("model-org", &o.model_org,
            "organisation on the Hub; unset: sgl-project, Pinaster for the 4-layer model");
  table
      .add("hf-checkpoint", &o.hf_checkpoint,
           "directory of an existing checkpoint; the download is skipped")
      .path()
      .for_commands(reads_model)
      .required_for(
          set_of(Command::kEval, Command::kGenerate, Command::kScore, Command::kTokenize));
  table.add("data-dir", &o.data_dir, "directory of the data sets").path();
  table.add("model-dir", &o.model_dir, "directory of downloaded and converted models").path();
  table
      .add("model-local-dir", &o.model_local_dir,
           "the node's own copy of --model-dir; unset: --model-dir itself")
      .path();
  table
      .add("save-dir", &o.save_dir,
           "runs go to {save-dir}/{run-id}, their checkpoints to checkpoints/ in it")
      .path()
      .not_hashed();
  table
      .add("run-id", &o.run_id,
           "names the run; the same id resumes it. Unset: UTC time and three random digits")
      .not_hashed();
  table
      .add("recipe-dir", &o.recipe_dir,
           "where the built-in models lie; unset: the configs/ this program was built beside")
      .path()
      .not_hashed();
}

void describe_recipe(OptionTable& table, Options& options) {
  LaunchOptions& o = options.launch;
  table.group("Recipe", kPipeline);
  table.add_choice<Mode>("mode", &o.mode,
                         {{"normal", Mode::kNormal}, {"debug_minimal", Mode::kDebugMinimal}},
                         "normal adds over-sampling of 512 prompts and the non-zero-std filter");
  table.add_choice<Task>(
      "task", &o.task,
      {{"dapo_aime", Task::kDapoAime}, {"gsm8k", Task::kGsm8k}, {"digit_sum", Task::kDigitSum}},
      "data set and its settings; digit_sum is the tiny model's");
  table.add("enable-eval", &o.enable_eval, "evaluate during training");
  table.add("skip-saving", &o.skip_saving, "save no checkpoints");
  table
      .add_choice<Conversion>(
          "conversion", &o.conversion,
          {{"single-pass", Conversion::kSinglePass}, {"two-step", Conversion::kTwoStep}},
          "single-pass converts FP8 and FP4 directly; two-step makes the BF16 cast first")
      .not_hashed();
  table.add("enable-r3", &o.enable_r3,
            "replay the experts that rollout chose; always off for the Pro model");
  table
      .add("train-deterministic", &o.train_deterministic,
           "the same bits from run to run; always so on the CPU")
      .built_only({"true"},
                  "A faster mode with other bits is not built: CPU results are always the "
                  "same bits.");
  table.add(
      "train-fp8", &o.train_fp8,
      "FP8 or (--no-) BF16 in the trainer. Acts only when it or --rollout-fp8 is given: both on "
      "is --precision parity-fp8, both off parity-bf16, different fast");
  table.add("rollout-fp8", &o.rollout_fp8,
            "FP8 or (--no-) BF16 in rollout; together with --train-fp8");
  table.add("train-mxfp8", &o.train_mxfp8, "MXFP8 products in the trainer")
      .built_only({"false"}, "MXFP8 is not built yet.");
  table.add("rollout-mxfp8", &o.rollout_mxfp8, "MXFP8 products in rollout")
      .built_only({"false"}, "MXFP8 is not built yet.");
  table
      .add("enable-mtp", &o.enable_mtp,
           "guess tokens with the MTP head in rollout: --sglang-speculative-algorithm EAGLE")
      .not_hashed();
  table.add("optimizer-offload", &o.optimizer_offload, "optimizer state in host memory")
      .without_effect("on the CPU the optimizer's state is in host memory anyway.")
      .planned()
      .not_hashed();
  table
      .add("use-fault-tolerance", &o.use_fault_tolerance,
           "watch the rollout engines and restart them")
      .without_effect(
          "the rollout engine is part of this process, there is no other to watch; a "
          "killed run resumes by its --run-id.")
      .not_hashed();
}

void describe_machines(OptionTable& table, Options& options) {
  LaunchOptions& o = options.launch;
  table.group("Machines", kPipeline);
  table.add("num-nodes", &o.num_nodes, "nodes in all; SLURM_JOB_NUM_NODES when that is set")
      .at_least(1)
      .built_only({"1"}, kOneNode)
      .all_values_for(set_of(Command::kPrepareSpmd, Command::kPrepareCp))
      .planned();
  table
      .add("num-gpus-per-node", &o.num_gpus_per_node,
           "local ranks on GPUs; on a CPU --num-procs counts")
      .at_least(1)
      .not_hashed();
  const CommandSet on_ranks = kTraining | set_of(Command::kScore, Command::kSft);
  table
      .add("num-procs", &o.num_procs,
           "local ranks on a CPU, which share the samples; results are the same but for the order "
           "in "
           "which gradients are summed")
      .at_least(1)
      .at_most(1024)
      .for_commands(kPipeline | on_ranks)
      .built_only({"1"},
                  "Several local ranks are not built yet in this subcommand; --threads uses all "
                  "cores of one.")
      .all_values_for(on_ranks | set_of(Command::kPrepareSpmd))
      .planned();
  table
      .add("distributed-timeout-minutes", &o.distributed_timeout_minutes,
           "minutes that a rank waits for another in one message or collective")
      .at_least(1)
      .at_most(100'000)
      .for_commands(kPipeline | on_ranks)
      .not_hashed();
  table
      .add_choice<Hardware>("hardware", &o.hardware,
                            {{"auto", Hardware::kAuto},
                             {"H100", Hardware::kH100},
                             {"H200", Hardware::kH200},
                             {"B200", Hardware::kB200},
                             {"B300", Hardware::kB300},
                             {"GB200", Hardware::kGb200},
                             {"GB300", Hardware::kGb300},
                             {"CPU", Hardware::kCpu}},
                            "what plan plans for; else it only says whether MXFP8 is possible. "
                            "auto: CPU with --num-procs, else H200")
      .without_effect("it says whether MXFP8 is possible, which is not built.")
      .planned()
      .not_hashed();
  table
      .add("rollout-num-nodes", &o.rollout_num_nodes,
           "nodes that only roll out; 0: every node trains and rolls out")
      .at_least(0)
      .built_only({"0"}, "Rollout on nodes of its own is not built yet; 0 is colocated.");
  table.add("output-dir", &o.output_dir, "where GPU core dumps go")
      .path()
      .without_effect("it is the place of GPU core dumps, and this build has no GPU code.")
      .not_hashed();
}

}  // namespace

void describe_launch_options(OptionTable& table, Options& options) {
  describe_places(table, options);
  describe_recipe(table, options);
  describe_machines(table, options);
  describe_runtime(table, options);
}

}  // namespace fathom::config
