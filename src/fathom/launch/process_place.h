// Which of several processes this one is, as launchers tell it.
#pragma once

#include <cstdint>
#include <string>

#include "fathom/config/parse.h"

namespace fathom {

struct LaunchedProcess {
  int64_t rank = 0, size = 1;
  std::string launcher;  // "torchrun", "Slurm"; empty: started alone
};

/// From RANK and WORLD_SIZE (torchrun and its like), else SLURM_PROCID and SLURM_NTASKS of a step
/// that srun started. MASTER_ADDR and MASTER_PORT are not needed: the processes meet in a
/// directory. Errors: ConfigError for one without the other, or numbers that do not fit.
LaunchedProcess launched_process(const config::Environment& environment);

}  // namespace fathom
