#include "fathom/launch/process_place.h"

#include <charconv>
#include <optional>

#include "fathom/base/error.h"

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

}  // namespace fathom
