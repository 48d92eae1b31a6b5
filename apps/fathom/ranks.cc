#include "ranks.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "fathom/base/log.h"
#include "fathom/base/log_screen.h"
#include "fathom/config/derived.h"
#include "fathom/dist/rank_environment.h"
#include "fathom/launch/supervisor.h"

namespace fathom {
namespace {

dist::WorldOptions world_options(const config::Options& o) {
  dist::WorldOptions options;
  options.operation_timeout = std::chrono::minutes(o.launch.distributed_timeout_minutes);
  options.on_stuck = [](const std::string& message) {
    report_peer_failure(message);
    std::fflush(nullptr);
    ::_exit(1);
  };
  return options;
}

}  // namespace

int start_local_ranks(const config::ParsedCommand& command) {
  SupervisorOptions options;
  options.num_ranks = static_cast<int>(command.options.launch.num_procs);
  options.arguments = own_arguments();
  // An id that was made now is the same for all ranks.
  if (const auto& run_id = command.options.launch.run_id) {
    options.environment["MILES_SCRIPT_RUN_ID"] = *run_id;
  }
  return supervise_ranks(options);
}

int run_on_ranks(const config::ParsedCommand& command,
                 const std::function<int(const dist::Group& ranks)>& work) {
  const dist::RankEnvironment environment = dist::rank_environment(config::current_environment());
  const int64_t num_procs = command.options.launch.num_procs;
  if (environment.size == 1) return num_procs > 1 ? start_local_ranks(command) : work({});
  if (command.is_given("num-procs") && num_procs != environment.local_size) {
    throw ConfigError(str_cat("--num-procs ", num_procs, ", but ", environment.launcher,
                              " has started ", environment.local_size, " ranks on this machine\n",
                              "  fix: leave --num-procs out, or start without ",
                              environment.launcher));
  }
  if (contains(config::kTraining, command.command) && environment.launcher != "fathom" &&
      !command.is_given("run-id")) {
    throw ConfigError(
        str_cat("--run-id is needed: ", environment.launcher, " has started ", environment.size,
                " ranks, and each would make an id of its own\n  fix: give all the same --run-id"));
  }
  if (command.options.runtime.device == config::DeviceKind::kCuda) {
    throw ConfigError(str_cat("--device cuda with ", environment.size,
                              " ranks: several ranks compute on CPUs so far\n  fix: one rank, or "
                              "--device cpu"));
  }
  show_log(environment.rank == 0);
  const auto world = dist::World::join(environment, world_options(command.options));
  try {
    const int code = work(world->everyone());
    world->finish();
    return code;
  } catch (const dist::PeerFailure&) {
    throw;
  } catch (const std::exception& e) {
    world->fail(e.what());
    throw;
  }
}

int report_failure(int exit_code, const std::string& message) {
  // Standard output may be what has failed; the message goes to standard error alone.
  std::fflush(stdout);
  if (report_to_supervisor(exit_code, message)) return exit_code;
  std::fprintf(stderr, "error: %s\n", message.c_str());
  return exit_code;
}

int report_peer_failure(const std::string& message) {
  // Whoever has thrown prints its own message. Of a rank that has died the first of the others
  // tells.
  const dist::RankEnvironment e = dist::rank_environment(config::current_environment());
  const bool has_died = message.find(" has died (") != std::string::npos;
  const int teller = message.starts_with("rank 0 ") ? 1 : 0;
  if (e.launcher != "fathom" && has_died && e.rank == teller) {
    std::fprintf(stderr, "error: %s\n", message.c_str());
  }
  return 1;
}

}  // namespace fathom
