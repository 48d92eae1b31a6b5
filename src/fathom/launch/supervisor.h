// Local ranks: the same command line, started several times on this machine, watched until all have
// ended.
//
// Each rank gets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as
// torchrun sets them, and a secret that is made anew for every run. Standard output of rank 0
// passes through; everything else that ranks print comes to standard error, line by line, behind
// "[rank 3] ". A rank that fails ends all of them, and one message says which it was and why.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace fathom {

struct SupervisorOptions {
  int num_ranks = 1;
  std::string program = "/proc/self/exe";
  std::vector<std::string> arguments;              // argv of the ranks, the program's name first
  std::map<std::string, std::string> environment;  // beside what this process has
  double grace_seconds = 15.0;  // for the other ranks to end by themselves, then they are killed
};

/// This process's own argv.
std::vector<std::string> own_arguments();

/// Starts the ranks and waits for them. SIGINT, SIGTERM and SIGHUP are passed on; a second one
/// kills. Should this process be killed, the ranks are too.
/// @return 0, or the exit code of the rank that failed first (1 when it was killed), or 128 + the
/// signal that ended the run. Errors: UserError when no process can be started.
int supervise_ranks(const SupervisorOptions& options);

/// In a rank: hands its error to the supervisor, which prints the first one once.
/// @return false when there is no supervisor: the caller prints it.
bool report_to_supervisor(int exit_code, const std::string& message);

}  // namespace fathom
