// Which of several processes this one is, and where they meet, as launchers tell it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace fathom::dist {

struct RankEnvironment {
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;  // on this machine
  std::string master_host = "127.0.0.1";
  int master_port = 0;   // 0: not told, and World::join() needs it
  int listen_fd = -1;    // of rank 0: a socket that listens there already, from our supervisor
  std::string secret;    // what all ranks of a run know and nobody else should
  std::string launcher;  // "torchrun", "Slurm", "fathom"; empty: started alone
};

/// From RANK and WORLD_SIZE (torchrun, our supervisor), with LOCAL_RANK, LOCAL_WORLD_SIZE,
/// MASTER_ADDR and MASTER_PORT; else from SLURM_PROCID and SLURM_NTASKS of a step that srun
/// started, with SLURM_LOCALID, the first host of its node list and a port that follows from the
/// job's id (MASTER_ADDR and MASTER_PORT win where they are set). FATHOM_RANKS_SECRET is the
/// secret; without it the job's id keeps runs apart, which is no protection. Where torchrun's agent
/// listens on MASTER_PORT itself, the ranks meet on the port above. Errors: ConfigError for one
/// variable without its companion, or numbers that do not fit.
RankEnvironment rank_environment(const std::map<std::string, std::string>& environment);

/// "node[03-07,12],other" -> "node03". The host list notation of Slurm.
std::string first_host(const std::string& host_list);

}  // namespace fathom::dist
