// The subcommands of the program.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fathom::config {

enum class Command {
  kFullTrain,
  kPrepareDownload,
  kPrepareSingle,
  kPrepareSpmd,
  kPrepareCp,
  kTrain,
  kSft,
  kEval,
  kGenerate,
  kScore,
  kTokenize,
  kExportHf,
  kInspect,
  kDownload,
  kServe,
  kBench,
  kPlan,
};

struct CommandInfo {
  Command command;
  std::string name;
  std::string summary;
};

/// Every subcommand, in the order of the help text.
const std::vector<CommandInfo>& all_commands();

/// "full-train" -> kFullTrain. Nothing when there is no such subcommand.
std::optional<Command> find_command(const std::string& name);
const std::string& command_name(Command command);

/// Subcommands that are part of the product but not of this build: name and a sentence.
struct UnbuiltCommand {
  std::string name, sentence;
};
const std::vector<UnbuiltCommand>& unbuilt_commands();

/// A set of subcommands: which of them take an option.
using CommandSet = uint32_t;

constexpr CommandSet set_of(Command command) {
  return CommandSet{1} << static_cast<uint32_t>(command);
}
template <typename... Rest>
constexpr CommandSet set_of(Command first, Rest... rest) {
  return set_of(first) | set_of(rest...);
}
constexpr bool contains(CommandSet set, Command command) { return (set & set_of(command)) != 0; }

/// full-train, its stages and plan: they all take the same options.
constexpr CommandSet kPipeline =
    set_of(Command::kFullTrain, Command::kPrepareDownload, Command::kPrepareSingle,
           Command::kPrepareSpmd, Command::kPrepareCp, Command::kTrain, Command::kPlan);
/// Those of the pipeline that train.
constexpr CommandSet kTraining = set_of(Command::kFullTrain, Command::kTrain);
constexpr CommandSet kAllCommands = ~CommandSet{0};

}  // namespace fathom::config
