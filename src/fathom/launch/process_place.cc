#include "fathom/launch/process_place.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <optional>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/file.h"

namespace fathom {
namespace {

std::optional<int64_t> number(const config::Environment& environment, const std::string& name) {
  const auto it = environment.find(name);
  if (it == environment.end() || it->second.empty()) return std::nullopt;
  const std::string& text = it->second;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw ConfigError(str_cat("the environment variable ", name, " is '", text,
                              "', which is no number\n  fix: unset it, or start with torchrun or ",
                              "srun, which set it"));
  }
  return value;
}

std::optional<LaunchedProcess> read(const config::Environment& environment, const char* launcher,
                                    const std::string& rank_name, const std::string& size_name) {
  const auto rank = number(environment, rank_name), size = number(environment, size_name);
  if (!rank && !size) return std::nullopt;
  if (!rank || !size || *size < 1 || *rank < 0 || *rank >= *size) {
    const auto show = [](const std::optional<int64_t>& n) {
      return n ? std::to_string(*n) : std::string("not set");
    };
    throw ConfigError(str_cat(rank_name, " is ", show(rank), " and ", size_name, " is ", show(size),
                              ": a rank counts from 0 to below the size",
                              "\n  fix: set both, or neither"));
  }
  return LaunchedProcess{*rank, *size, launcher};
}

}  // namespace

LaunchedProcess launched_process(const config::Environment& environment) {
  if (const auto torchrun = read(environment, "torchrun", "RANK", "WORLD_SIZE")) return *torchrun;
  // The script of a batch job has these variables too, without being one of several.
  const auto step = environment.find("SLURM_STEPID");
  const bool is_batch_script =
      step != environment.end() && (step->second == "batch" || step->second == "4294967291");
  if (!environment.contains("SLURM_PROCID") || is_batch_script) return {};
  const char* size =
      environment.contains("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
  if (!environment.contains(size)) return {};
  return read(environment, "Slurm", "SLURM_PROCID", size).value_or(LaunchedProcess{});
}

int run_local_ranks(int64_t size) {
  std::vector<std::string> words;
  const std::string line = read_file("/proc/self/cmdline");
  for (size_t at = 0; at < line.size(); at += words.back().size() + 1) {
    words.emplace_back(line.c_str() + at);
  }
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  std::vector<pid_t> children;
  const pid_t parent = ::getpid();
  for (int64_t rank = 0; rank < size; ++rank) {
    const std::string rank_text = std::to_string(rank), size_text = std::to_string(size);
    const pid_t pid = ::fork();
    FATHOM_CHECK(pid >= 0, "cannot start another process: error ", errno);
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // they do not outlive this process
      if (::getppid() != parent) ::_exit(1);
      ::setenv("RANK", rank_text.c_str(), 1);
      ::setenv("LOCAL_RANK", rank_text.c_str(), 1);
      ::setenv("WORLD_SIZE", size_text.c_str(), 1);
      ::execv("/proc/self/exe", argv.data());
      ::_exit(127);
    }
    children.push_back(pid);
  }
  int result = 0;
  for (size_t left = children.size(); left > 0;) {
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, 0);
    if (pid < 0 && errno == EINTR) continue;
    if (pid < 0) break;
    const auto child = std::find(children.begin(), children.end(), pid);
    if (child == children.end()) continue;
    *child = -1;
    --left;
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    if (code == 0 || result != 0) continue;
    result = code;
    for (const pid_t other : children) {
      if (other > 0) ::kill(other, SIGKILL);
    }
  }
  return result;
}

}  // namespace fathom
