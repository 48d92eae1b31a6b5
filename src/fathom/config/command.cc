#include "fathom/config/command.h"

#include "fathom/base/error.h"

namespace fathom::config {

const std::vector<CommandInfo>& all_commands() {
  static const std::vector<CommandInfo> commands = {
      {Command::kFullTrain, "full-train", "prepare everything that is missing, then train"},
      {Command::kPrepareDownload, "prepare-download", "get the model and the data"},
      {Command::kPrepareSingle, "prepare-single", "cast an FP8 or FP4 checkpoint to BF16"},
      {Command::kPrepareSpmd, "prepare-spmd", "convert a checkpoint to sharded torch_dist weights"},
      {Command::kPrepareCp, "prepare-cp", "copy the prepared weights to the node's own disk"},
      {Command::kTrain, "train", "the reinforcement learning loop"},
      {Command::kSft, "sft", "supervised training with the same trainer"},
      {Command::kEval, "eval", "accuracy of a checkpoint on a set of prompts"},
      {Command::kGenerate, "generate", "answers of a checkpoint to prompts of a file"},
      {Command::kServe, "serve", "an HTTP server: SGLang's and OpenAI's interfaces; or a router"},
      {Command::kScore, "score", "log-probs, logits and gradients of given tokens"},
      {Command::kTokenize, "tokenize", "text to token ids and back"},
      {Command::kExportHf, "export-hf", "training checkpoint to Hugging Face safetensors"},
      {Command::kInspect, "inspect", "what is in a checkpoint or a run directory"},
      {Command::kPlan, "plan", "memory, messages and time of a run, before it is started"},
      {Command::kBench, "bench",
       "speed and memory of forward, training and decoding on random weights"},
      {Command::kDownload, "download", "a model or data set from a Hub"},
  };
  return commands;
}

std::optional<Command> find_command(const std::string& name) {
  for (const CommandInfo& info : all_commands())
    if (info.name == name) return info.command;
  return std::nullopt;
}

const std::string& command_name(Command command) {
  for (const CommandInfo& info : all_commands())
    if (info.command == command) return info.name;
  FATHOM_ASSERT(false, "command without a name");
}

const std::vector<UnbuiltCommand>& unbuilt_commands() {
  static const std::vector<UnbuiltCommand> commands = {
      {"prepare-mxfp8",
       "MXFP8 checkpoints are not built yet; --precision parity-fp8 rolls out in FP8 blocks."},
  };
  return commands;
}

}  // namespace fathom::config
