#include "commands.h"

#include <utility>

namespace fathom {

RunCommand find_run_command(config::Command command) {
  static constexpr std::pair<config::Command, RunCommand> kCommands[] = {
      {config::Command::kFullTrain, run_pipeline},
      {config::Command::kPrepareDownload, run_pipeline},
      {config::Command::kPrepareSingle, run_pipeline},
      {config::Command::kPrepareSpmd, run_pipeline},
      {config::Command::kPrepareCp, run_pipeline},
      {config::Command::kTrain, run_pipeline},
      {config::Command::kBench, run_bench},
      {config::Command::kDownload, run_download},
      {config::Command::kEval, run_eval},
      {config::Command::kExportHf, run_export_hf},
      {config::Command::kGenerate, run_generate},
      {config::Command::kScore, run_score},
      {config::Command::kServe, run_serve},
      {config::Command::kSft, run_sft},
      {config::Command::kTokenize, run_tokenize},
      {config::Command::kInspect, run_inspect},
      {config::Command::kPlan, run_plan},
  };
  for (const auto& [known, run] : kCommands)
    if (known == command) return run;
  return nullptr;
}

}  // namespace fathom
