#include "fathom/dist/rank_environment.h"

#include <charconv>
#include <optional>

#include "fathom/base/error.h"
#include "fathom/base/hash.h"

namespace fathom::dist {
namespace {

using Variables = std::map<std::string, std::string>;

std::string text_of(const Variables& variables, const std::string& name) {
  const auto it = variables.find(name);
  return it == variables.end() ? "" : it->second;
}

std::optional<int> number_of(const Variables& variables, const std::string& name) {
  const std::string text = text_of(variables, name);
  if (text.empty()) return std::nullopt;
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    throw ConfigError(str_cat("the environment variable ", name, " is '", text,
                              "', which is no count\n  fix: unset it, or start with torchrun or ",
                              "srun, which set it"));
  }
  return value;
}

/// Sets `*index` below `*size` from two variables. @return false when neither is set.
bool read_pair(const Variables& variables, const std::string& index_name,
               const std::string& size_name, int* index, int* size) {
  const auto i = number_of(variables, index_name), n = number_of(variables, size_name);
  if (!i && !n) return false;
  if (!i || !n || *i >= *n) {
    const auto show = [](const std::optional<int>& v) {
      return v ? std::to_string(*v) : std::string("not set");
    };
    throw ConfigError(str_cat(index_name, " is ", show(i), " and ", size_name, " is ", show(n),
                              ": a rank counts from 0 to below the size",
                              "\n  fix: set both, or neither"));
  }
  *index = *i;
  *size = *n;
  return true;
}

void read_meeting_place(const Variables& variables, RankEnvironment* e) {
  if (const std::string host = text_of(variables, "MASTER_ADDR"); !host.empty())
    e->master_host = host;
  if (const auto port = number_of(variables, "MASTER_PORT")) e->master_port = *port;
}

void read_torchrun(const Variables& variables, RankEnvironment* e) {
  e->launcher = "torchrun";
  if (!read_pair(variables, "LOCAL_RANK", "LOCAL_WORLD_SIZE", &e->local_rank, &e->local_size)) {
    e->local_rank = e->rank;
    e->local_size = e->size;
  }
  e->secret = text_of(variables, "TORCHELASTIC_RUN_ID");
  read_meeting_place(variables, e);
  if (text_of(variables, "TORCHELASTIC_USE_AGENT_STORE") == "True") ++e->master_port;
  if (const auto fd = number_of(variables, "FATHOM_RANKS_LISTEN_FD")) {
    e->launcher = "fathom";
    if (e->rank == 0) e->listen_fd = *fd;
  }
}

/// The script of a batch job has Slurm's variables too, without being one of several.
bool is_slurm_step(const Variables& variables) {
  const std::string step = text_of(variables, "SLURM_STEP_ID").empty()
                               ? text_of(variables, "SLURM_STEPID")
                               : text_of(variables, "SLURM_STEP_ID");
  return variables.contains("SLURM_PROCID") && step != "batch" && step != "4294967291";
}

bool read_slurm(const Variables& variables, RankEnvironment* e) {
  const char* size =
      variables.contains("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
  if (!is_slurm_step(variables) || !variables.contains(size)) return false;
  read_pair(variables, "SLURM_PROCID", size, &e->rank, &e->size);
  e->launcher = "Slurm";
  e->local_rank = number_of(variables, "SLURM_LOCALID").value_or(e->rank);
  // "4(x2),3" counts the tasks of each node; those of this node are what bounds the threads here.
  const std::string per_node = text_of(variables, "SLURM_STEP_TASKS_PER_NODE");
  const std::string count = per_node.substr(0, per_node.find_first_of("(,"));
  e->local_size = number_of({{"SLURM_STEP_TASKS_PER_NODE", count}}, "SLURM_STEP_TASKS_PER_NODE")
                      .value_or(e->size);
  std::string hosts = text_of(variables, "SLURM_STEP_NODELIST");
  if (hosts.empty()) hosts = text_of(variables, "SLURM_JOB_NODELIST");
  if (!hosts.empty()) e->master_host = first_host(hosts);
  const std::string job =
      text_of(variables, "SLURM_JOB_ID") + "." + text_of(variables, "SLURM_STEP_ID");
  e->secret = "slurm " + job;
  // A port that all ranks can work out and that differs between jobs: 20000 to 29999.
  e->master_port = 20'000 + std::stoi(sha256_hex(job).substr(0, 6), nullptr, 16) % 10'000;
  read_meeting_place(variables, e);
  return true;
}

}  // namespace

std::string first_host(const std::string& host_list) {
  const size_t end = host_list.find_first_of(",[");
  std::string host = host_list.substr(0, end);
  if (end == std::string::npos || host_list[end] == ',') return host;
  const size_t stop = host_list.find_first_of(",-]", end);
  return host + host_list.substr(end + 1, stop - end - 1);
}

RankEnvironment rank_environment(const std::map<std::string, std::string>& environment) {
  RankEnvironment e;
  if (read_pair(environment, "RANK", "WORLD_SIZE", &e.rank, &e.size)) {
    read_torchrun(environment, &e);
  } else {
    read_slurm(environment, &e);
  }
  if (const std::string s = text_of(environment, "FATHOM_RANKS_SECRET"); !s.empty()) e.secret = s;
  return e;
}

}  // namespace fathom::dist
