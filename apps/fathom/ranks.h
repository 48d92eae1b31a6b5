// Subcommands that several ranks compute together.
#pragma once

#include <functional>
#include <string>

#include "fathom/config/parse.h"
#include "fathom/dist/group.h"

namespace fathom {

/// Runs `work` on all ranks of the command and returns its exit code: in this process when it is
/// alone, or one of several that torchrun, Slurm or our supervisor has started; otherwise in
/// --num-procs copies of this process. A rank that throws ends all of them. Ranks but the first
/// keep their log lines to themselves. Errors: ConfigError when --num-procs contradicts the
/// launcher; what `work` throws.
int run_on_ranks(const config::ParsedCommand& command,
                 const std::function<int(const dist::Group& ranks)>& work);

/// Starts --num-procs copies of this process and waits for them. @return exit code of the run.
int start_local_ranks(const config::ParsedCommand& command);

/// Ends a process that has failed. @return the exit code. Of several ranks one prints the message:
/// the supervisor where there is one, else the rank that failed.
int report_failure(int exit_code, const std::string& message);
/// The same for a rank whose work ended because another has failed.
int report_peer_failure(const std::string& message);

}  // namespace fathom
